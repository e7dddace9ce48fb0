# Read by CMake right after llama.cpp's project() call: llama-cpp-python forces the "common" library on, which
# nothing here uses and which takes half of the build. Without it the libraries that we load are the same.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "not used by slm-edge" FORCE)
