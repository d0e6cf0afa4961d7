/* stored_zip.h - a zip of plain entries in memory, as torch.save writes it, for tests and fuzzing.
 *
 * Checksums are 0: the reader does not look at them. */
#pragma once
#include <stdint.h>
#include <string.h>

typedef struct stored_zip {
    uint8_t data[1 << 16], directory[1 << 12];
    size_t size, directory_size;
    int entries;
} stored_zip;

static inline void zip_number(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) at[i] = (uint8_t)(value >> 8 * i);
}

/* Adds an entry; method 0 is stored. The contents must fit. */
static inline void zip_add(stored_zip *z, const char *name, const void *data, size_t n, int method)
{
    uint8_t *local = z->data + z->size, *central = z->directory + z->directory_size;
    size_t length = strlen(name), pad = (64 - (z->size + 30 + length) % 64) % 64;
    memset(local, 0, 30 + length + pad);
    zip_number(local, 0x04034b50, 4);
    zip_number(local + 26, length, 2);
    zip_number(local + 28, pad, 2);
    memcpy(local + 30, name, length);
    if (n) memcpy(local + 30 + length + pad, data, n);
    memset(central, 0, 46);
    zip_number(central, 0x02014b50, 4);
    zip_number(central + 10, (uint64_t)method, 2);
    zip_number(central + 20, n, 4);
    zip_number(central + 24, n, 4);
    zip_number(central + 28, length, 2);
    zip_number(central + 42, z->size, 4);
    memcpy(central + 46, name, length);
    z->size += 30 + length + pad + n;
    z->directory_size += 46 + length;
    z->entries++;
}

/* Writes the directory behind the entries. */
static inline void zip_end(stored_zip *z)
{
    uint8_t *end = z->data + z->size + z->directory_size;
    memcpy(z->data + z->size, z->directory, z->directory_size);
    memset(end, 0, 22);
    zip_number(end, 0x06054b50, 4);
    zip_number(end + 10, (uint64_t)z->entries, 2);
    zip_number(end + 12, z->directory_size, 4);
    zip_number(end + 16, z->size, 4);
    z->size += z->directory_size + 22;
}
