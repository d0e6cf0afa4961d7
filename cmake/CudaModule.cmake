# CudaModule.cmake - vq_cuda.so: kernels/cuda, and comm_nccl where NCCL is found.

find_program(VQ_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin PATHS /usr/local/cuda/bin)
if(NOT VQ_NVCC)
  message(STATUS "CUDA: no nvcc: the program is built without its GPU module")
  return()
endif()

# The architectures that this nvcc knows, and the newest one's PTX for GPUs to come. They must be
# set before the language is enabled.
execute_process(COMMAND ${VQ_NVCC} --list-gpu-arch OUTPUT_VARIABLE _known)
set(_architectures "")
foreach(_architecture ${VQ_CUDA_WANTED})
  if(_known MATCHES "compute_${_architecture}\n")
    list(APPEND _architectures ${_architecture}-real)
    set(_newest ${_architecture}-virtual)
  endif()
endforeach()
if(NOT _architectures)
  message(FATAL_ERROR "CUDA: ${VQ_NVCC} knows none of the architectures ${VQ_CUDA_WANTED}: "
    "expected CUDA 12.0 or newer. Use a newer toolkit, set VQ_CUDA_WANTED, or give -DVQ_CUDA=OFF")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${_architectures} ${_newest})
set(CMAKE_CUDA_COMPILER ${VQ_NVCC})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  message(FATAL_ERROR "CUDA: ${VQ_NVCC} is of CUDA ${CMAKE_CUDA_COMPILER_VERSION}: "
    "expected 12.0 or newer. Use a newer toolkit, or give -DVQ_CUDA=OFF")
endif()
find_package(CUDAToolkit REQUIRED)
find_path(VQ_NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(VQ_NCCL_LIBRARY NAMES nccl HINTS ${CUDAToolkit_LIBRARY_DIR})

file(GLOB _host CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.c)
file(GLOB _kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
add_library(vq_cuda_host OBJECT ${_host} mpi/cuda_table.c)
set_target_properties(vq_cuda_host PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(vq_cuda_host PRIVATE src kernels kernels/cuda mpi)
target_include_directories(vq_cuda_host SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(vq_cuda_host PRIVATE vq_flags)

set(_launcher ${CMAKE_CUDA_COMPILER_LAUNCHER} ${CMAKE_SOURCE_DIR}/cmake/ptxas_log.sh)
add_library(vq_cuda MODULE ${_kernels} $<TARGET_OBJECTS:vq_cuda_host>)
set_target_properties(vq_cuda PROPERTIES PREFIX "" CUDA_RUNTIME_LIBRARY Shared # one, the host files' too
  CUDA_COMPILER_LAUNCHER "${_launcher}"
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}
  BUILD_RPATH "${CUDAToolkit_LIBRARY_DIR}" INSTALL_RPATH "$ORIGIN;${CUDAToolkit_LIBRARY_DIR}")
target_include_directories(vq_cuda PRIVATE src kernels kernels/cuda)
target_include_directories(vq_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_options(vq_cuda PRIVATE -lineinfo -Xptxas=-v -Xcompiler=-Wall,-Wextra
  $<$<BOOL:${VQ_WERROR}>:-Werror=all-warnings>
  $<$<VERSION_GREATER_EQUAL:${CMAKE_CUDA_COMPILER_VERSION},13>:--compress-mode=size>) # 5 MB in place of 38
target_link_libraries(vq_cuda PRIVATE CUDA::cudart CUDA::cublasLt CUDA::cublas CUDA::cusolver)
if(VQ_NCCL_INCLUDE_DIR AND VQ_NCCL_LIBRARY)
  target_sources(vq_cuda_host PRIVATE mpi/comm_nccl.c)
  target_include_directories(vq_cuda_host SYSTEM PRIVATE ${VQ_NCCL_INCLUDE_DIR})
  target_compile_definitions(vq_cuda_host PRIVATE VQ_NCCL)
  target_link_libraries(vq_cuda PRIVATE ${VQ_NCCL_LIBRARY})
else()
  message(STATUS "CUDA: no NCCL: GPUs' tensors go through MPI")
endif()
install(TARGETS vq_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/vqround)
