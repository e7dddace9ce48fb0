# Read by CMake right after llama.cpp's project() call: llama-cpp-python forces the "common" library on, which
# nothing here uses and which takes half of the build. Without it the libraries that we load are the same.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "not used by slm-edge" FORCE)
# Libraries for one CPU each are loaded from the folder where they lie, and name no folder of the machine that built them.
if(GGML_CPU_ALL_VARIANTS AND NOT APPLE)
  set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
  set(CMAKE_INSTALL_RPATH "$ORIGIN")
endif()
