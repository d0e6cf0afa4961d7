/* memory - /proc/meminfo and the control groups of both versions. */
#include "memory.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

typedef unsigned long long bytes;

/* Where a version has its groups, and what it calls things. */
typedef struct version {
    const char *mount, *limit, *used;
    const char *cache[2]; /* in memory.stat: files' pages */
} version;

static const version first = {"/sys/fs/cgroup/memory",
                              "memory.limit_in_bytes",
                              "memory.usage_in_bytes",
                              {"total_inactive_file", "total_active_file"}};
static const version second[] = {
    {"/sys/fs/cgroup", "memory.max", "memory.current", {"inactive_file", "active_file"}},
    {"/sys/fs/cgroup/unified", "memory.max", "memory.current", {"inactive_file", "active_file"}}};

static FILE *open_in(const char *folder, const char *name)
{
    char path[PATH_MAX];
    return snprintf(path, sizeof path, "%s/%s", folder, name) < PATH_MAX ? fopen(path, "r") : NULL;
}

/* The number that a file begins with; false: there is none ("max"). */
static bool read_number(const char *folder, const char *name, bytes *n)
{
    FILE *f = open_in(folder, name);
    const bool ok = f && fscanf(f, "%llu", n) == 1;
    if (f) fclose(f);
    return ok;
}

static bytes read_cache(const char *folder, const version *v)
{
    FILE *f = open_in(folder, "memory.stat");
    char line[128], key[128];
    bytes n, sum = 0;
    while (f && fgets(line, sizeof line, f))
        for (int i = 0; i < VQ_COUNT(v->cache); i++)
            if (sscanf(line, "%127s %llu", key, &n) == 2 && !strcmp(key, v->cache[i])) sum += n;
    if (f) fclose(f);
    return sum;
}

/* What the group and those above it leave. In a container the group may be the top of what is
 * seen, whatever its name: folders that are not there are passed over. */
static void obey_groups(const char *root, const version *v, const char *group, bytes *free_bytes,
                        bytes *total_bytes)
{
    char folder[PATH_MAX];
    const int length = snprintf(folder, sizeof folder, "%s%s", root, v->mount);
    const int end = snprintf(folder, sizeof folder, "%s%s%s", root, v->mount, group);
    if (end >= PATH_MAX) return;
    for (char *slash = folder + end; slash; slash = strrchr(folder + length, '/')) {
        bytes limit, used;
        *slash = '\0';
        if (!read_number(folder, v->limit, &limit) || !read_number(folder, v->used, &used))
            continue;
        used -= VQ_MIN(used, read_cache(folder, v));
        *total_bytes = VQ_MIN(*total_bytes, limit);
        *free_bytes = VQ_MIN(*free_bytes, limit - VQ_MIN(limit, used));
    }
}

/* Lines NUMBER:CONTROLLERS:GROUP; the second version's has no controllers. */
static void obey_all_groups(const char *root, bytes *free_bytes, bytes *total_bytes)
{
    FILE *f = open_in(root, "proc/self/cgroup");
    char line[PATH_MAX];
    while (f && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        if (strstr(controllers, "memory"))
            obey_groups(root, &first, group, free_bytes, total_bytes);
        for (int i = 0; i < VQ_COUNT(second) && !controllers[1]; i++)
            obey_groups(root, &second[i], group, free_bytes, total_bytes);
    }
    if (f) fclose(f);
}

vq_status vq_memory_info(const char *root, size_t *free_bytes, size_t *total_bytes)
{
    FILE *f = open_in(root, "proc/meminfo");
    VQ_CHECK(f, VQ_EMEM,
             "%s/proc/meminfo: cannot be opened, expected the system's memory counts. Mount /proc",
             root);
    bytes total_kib = 0, available_kib = 0;
    char line[128];
    while (fgets(line, sizeof line, f)) {
        (void)sscanf(line, "MemTotal: %llu", &total_kib);
        (void)sscanf(line, "MemAvailable: %llu", &available_kib);
    }
    fclose(f);
    VQ_CHECK(total_kib > 0, VQ_EMEM,
             "%s/proc/meminfo: no line MemTotal, expected one. Mount the kernel's own /proc", root);
    bytes total = total_kib << 10, available = available_kib << 10;
    obey_all_groups(root, &available, &total);
    *total_bytes = (size_t)total;
    *free_bytes = (size_t)available;
    return VQ_OK;
}
