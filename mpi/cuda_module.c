/* cuda_module - finding and opening vq_cuda.so. */
#include "cuda_module.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "error.h"

#define FILE_NAME "vq_cuda.so"

/* Where it may be, from the program's folder. */
static const char *const places[] = {"", "../", "../lib/vqround/", "../lib64/vqround/"};

static vq_status program_folder(char *dir, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", dir, size - 1);
    VQ_CHECK(n > 0, VQ_EUNSUPPORTED,
             "--device cuda: /proc/self/exe cannot be read: expected the program's place, beside "
             "which " FILE_NAME " is looked for. Mount /proc, or run with --device cpu");
    dir[n] = '\0';
    char *slash = strrchr(dir, '/');
    slash[1] = '\0';
    return VQ_OK;
}

static vq_status check_table(const vq_cuda_module *m, const char *path)
{
    VQ_CHECK(m && m->abi == VQ_CUDA_ABI && m->sizes == VQ_CUDA_SIZES &&
                 !strcmp(m->version, VQ_VERSION),
             VQ_EUNSUPPORTED,
             "--device cuda: %s is not of this program's build (%s): expected both from one. Build "
             "or copy them together",
             path, m && m->abi == VQ_CUDA_ABI ? m->version : "another interface");
    return VQ_OK;
}

vq_status vq_cuda_module_open(const vq_cuda_module **out)
{
    static const vq_cuda_module *opened;
    char dir[4096], path[4096 + 64];
    if (opened) {
        *out = opened;
        return VQ_OK;
    }
    VQ_TRY(program_folder(dir, sizeof dir));
    for (int i = 0; i < VQ_COUNT(places); i++) {
        snprintf(path, sizeof path, "%s%s" FILE_NAME, dir, places[i]);
        if (access(path, F_OK) != 0) continue;
        /* Not closed: CUDA's libraries do not stand being unloaded. */
        void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        VQ_CHECK(module, VQ_EUNSUPPORTED,
                 "--device cuda: %s cannot be loaded: %s. Expected the CUDA libraries that it was "
                 "built with: add their folder to LD_LIBRARY_PATH, or run with --device cpu",
                 path, dlerror());
        const vq_cuda_module *m = dlsym(module, VQ_CUDA_SYMBOL);
        VQ_TRY(check_table(m, path));
        *out = opened = m;
        return VQ_OK;
    }
    VQ_FAIL(VQ_EUNSUPPORTED,
            "--device cuda: no " FILE_NAME " is in %s or ../lib/vqround: expected it beside a "
            "program that was built with CUDA. Build it where nvcc is found, or run with --device "
            "cpu",
            dir);
}
