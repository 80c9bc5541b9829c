# Every variant of the step plan's kernels as a cubin for every chip of FASTRNN_CUDA_ARCHS, installed where fastrnn looks for it.
# Needs nvcc, and a Python with NumPy, which lists the variants and writes nvcc's options (fastrnn/cuda/source.py).
foreach(chip IN LISTS FASTRNN_CUDA_ARCHS)
  if(NOT chip MATCHES "^[1-9][0-9][0-9]?[af]?$")
    message(FATAL_ERROR "FASTRNN_CUDA_ARCHS: expected chips as 80;90a;120, got '${chip}'")
  endif()
endforeach()
find_program(FASTRNN_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin)
if(NOT FASTRNN_NVCC)
  message(FATAL_ERROR "FASTRNN_CUDA_ARCHS: compiling ahead of time needs nvcc, which was not found")
endif()
find_package(Python REQUIRED COMPONENTS Interpreter)

set(sources "${CMAKE_BINARY_DIR}/cubin_sources")
file(REMOVE_RECURSE "${sources}")
execute_process(
  COMMAND "${CMAKE_COMMAND}" -E env "PYTHONPATH=${CMAKE_SOURCE_DIR}/src"
          "${Python_EXECUTABLE}" -m fastrnn.cuda.source "${sources}" ${FASTRNN_CUDA_ARCHS}
  RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "FASTRNN_CUDA_ARCHS: the sources could not be listed with ${Python_EXECUTABLE}")
endif()

file(GLOB listed "${sources}/*.cu")
set(cubins "")
foreach(source IN LISTS listed)
  get_filename_component(name "${source}" NAME_WLE) # VARIANT-HASH.sm_90.cubin
  string(REGEX REPLACE ".*\\.(sm_[0-9]+[af]?)\\.cubin$" "\\1" chip "${name}")
  set(target "${CMAKE_BINARY_DIR}/cubins/${name}")
  add_custom_command(
    OUTPUT "${target}"
    COMMAND "${CMAKE_COMMAND}" -E make_directory "${CMAKE_BINARY_DIR}/cubins"
    COMMAND "${FASTRNN_NVCC}" -cubin "-arch=${chip}" --options-file "${sources}/options" -o "${target}" "${source}"
    DEPENDS "${source}" "${sources}/options"
    VERBATIM)
  list(APPEND cubins "${target}")
endforeach()
add_custom_target(fastrnn_cubins ALL DEPENDS ${cubins})
install(FILES ${cubins} DESTINATION fastrnn/csrc/cubins)
