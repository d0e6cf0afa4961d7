/* test_memory - what a process may take, from files as kernels and Slurm make them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "expect.h"
#include "fileio.h"
#include "memory.h"

#define ROOT "memory-root"
#define MIB ((size_t)1 << 20)

static void put(const char *path, const char *text)
{
    char whole[512], folder[512];
    snprintf(whole, sizeof whole, ROOT "/%s", path);
    snprintf(folder, sizeof folder, "%s", whole);
    *strrchr(folder, '/') = '\0';
    EXPECT_OK(vq_make_folders(folder));
    EXPECT_OK(vq_file_write(whole, text, strlen(text)));
}

static void expect_info(size_t free_mib, size_t total_mib)
{
    size_t free_bytes, total_bytes;
    EXPECT_OK(vq_memory_info(ROOT, &free_bytes, &total_bytes));
    if (free_bytes != free_mib * MIB || total_bytes != total_mib * MIB)
        fail_msg("%zu of %zu MiB, expected %zu of %zu", free_bytes / MIB, total_bytes / MIB,
                 free_mib, total_mib);
}

static int start(void **state)
{
    (void)state;
    (void)!system("rm -rf " ROOT);
    put("proc/meminfo",
        "MemTotal:        8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n");
    return 0;
}

static void test_machine(void **state)
{
    (void)state;
    expect_info(4096, 8192);
    put("proc/self/cgroup", "0::/\n");
    expect_info(4096, 8192);
    put("proc/self/cgroup", "no colons\n:\n4:memory\n");
    expect_info(4096, 8192);
}

/* A job's limit, as Slurm sets it, above the step's own group, which has none. */
static void test_second_version(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/system.slice/slurm/job_7/step_0\n");
    put("sys/fs/cgroup/system.slice/slurm/job_7/step_0/memory.max", "max\n");
    put("sys/fs/cgroup/system.slice/slurm/job_7/step_0/memory.current", "1048576\n");
    put("sys/fs/cgroup/system.slice/slurm/job_7/memory.max", "1073741824\n");
    put("sys/fs/cgroup/system.slice/slurm/job_7/memory.current", "629145600\n");
    expect_info(1024 - 600, 1024);
    put("sys/fs/cgroup/system.slice/slurm/job_7/memory.stat",
        "anon 104857600\nfile 524288000\ninactive_file 314572800\nactive_file 104857600\n"
        "workingset_activate_file 7\n");
    expect_info(1024 - 600 + 400, 1024);
    put("sys/fs/cgroup/memory.max", "536870912\n"); /* of a container around all that */
    put("sys/fs/cgroup/memory.current", "671088640\n");
    expect_info(0, 512);
}

static void test_first_version(void **state)
{
    (void)state;
    put("proc/self/cgroup", "5:devices:/\n4:cpu,memory:/slurm/uid_0/job_7\n1:cpu:/\n0::/\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "7516192768\n");
    expect_info(4096, 8192);
    put("sys/fs/cgroup/memory/slurm/uid_0/job_7/memory.limit_in_bytes", "2147483648\n");
    put("sys/fs/cgroup/memory/slurm/uid_0/job_7/memory.usage_in_bytes", "1073741824\n");
    put("sys/fs/cgroup/memory/slurm/uid_0/job_7/memory.stat",
        "inactive_file 1\ntotal_inactive_file 536870912\ntotal_active_file 0\n");
    expect_info(1024 + 512, 2048);
    /* The group's name is of outside, and its folder is what is seen here as the top. */
    put("proc/self/cgroup", "4:memory:/docker/0123\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "104857600\n");
    expect_info(1024 - 100, 1024);
}

static void test_no_proc(void **state)
{
    (void)state;
    size_t a, b;
    put("proc/meminfo", "nothing\n");
    EXPECT_ERROR(vq_memory_info(ROOT, &a, &b), VQ_EMEM, "meminfo", "no line MemTotal");
    EXPECT_ERROR(vq_memory_info(ROOT "/none", &a, &b), VQ_EMEM, "/proc/meminfo", "Mount /proc");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_machine, start),
        cmocka_unit_test_setup(test_second_version, start),
        cmocka_unit_test_setup(test_first_version, start),
        cmocka_unit_test_setup(test_no_proc, start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
