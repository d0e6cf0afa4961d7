# In vqround's folder:
#   spack repo add packaging/spack
#   spack dev-build vqround@main          (vqround@main+cuda cuda_arch=80,90 for GPUs)
from spack.package import *

try:  # Spack 1.0 and newer
    from spack_repo.builtin.build_systems.cmake import CMakePackage
    from spack_repo.builtin.build_systems.cuda import CudaPackage
except ImportError:  # older ones have them in spack.package
    pass


class Vqround(CMakePackage, CudaPackage):
    """Quantizes language models by learned rounding, as an MPI job."""

    version("main")

    variant("mpi", default=True, description="jobs of many ranks")
    variant("sentencepiece", default=True, description="models with a tokenizer.model alone")
    variant("report", default=True, description="plots in reports")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.18:", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("openblas threads=openmp")
    depends_on("hdf5~mpi")
    depends_on("faiss~python~cuda")
    depends_on("jansson")
    depends_on("libyaml")
    depends_on("pcre2")
    depends_on("utf8proc")
    depends_on("zlib-api")
    depends_on("zstd")
    depends_on("openmpi", when="+mpi")
    depends_on("cuda@12:", when="+cuda")
    depends_on("nccl@2.18.1:", when="+cuda+mpi")
    depends_on("sentencepiece", when="+sentencepiece")
    depends_on("gnuplot", type="run", when="+report")

    def cmake_args(self):
        args = [
            self.define("VQ_ARCH", ""),  # Spack's compiler wrapper names the processor
            self.define("VQ_TESTS", False),
            self.define("VQ_WERROR", False),
            self.define("CMAKE_DISABLE_FIND_PACKAGE_MPI", "~mpi" in self.spec),
            self.define_from_variant("VQ_CUDA", "cuda"),
        ]
        if "+cuda" in self.spec:
            args.append(self.define("VQ_NVCC", self.spec["cuda"].prefix.bin.nvcc))
            if "none" not in self.spec.variants["cuda_arch"].value:
                args.append(self.define_from_variant("VQ_CUDA_WANTED", "cuda_arch"))
        faiss = self.spec["faiss"]
        if not faiss.external:  # its C API is made from the source of the FAISS that is installed
            faiss.package.do_stage()
            args.append(self.define("FAISS_SRC", faiss.package.stage.source_path))
        return args
