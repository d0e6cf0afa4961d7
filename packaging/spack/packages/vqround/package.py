# In vqround's folder:
#   spack repo add packaging/spack
#   spack dev-build vqround@main
from spack.package import *


class Vqround(CMakePackage):
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
    depends_on("sentencepiece", when="+sentencepiece")
    depends_on("gnuplot", type="run", when="+report")

    def cmake_args(self):
        # FAISS's C API is made from the source of the FAISS that is installed.
        faiss = self.spec["faiss"].package
        faiss.do_stage()
        return [
            self.define("VQ_ARCH", ""),  # Spack's compiler wrapper names the processor
            self.define("VQ_TESTS", False),
            self.define("VQ_WERROR", False),
            self.define("FAISS_SRC", faiss.stage.source_path),
            self.define("CMAKE_DISABLE_FIND_PACKAGE_MPI", "~mpi" in self.spec),
        ]
