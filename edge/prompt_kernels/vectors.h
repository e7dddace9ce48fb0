// What the parts that are compiled for each kind of CPU share: a vector of floats, as wide as the CPU's, and what is put into
// it. Includes no header of the C++ library: a linker would keep one copy of what it defines, for whatever CPU.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

template <class T> inline T load(const void * from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

// A half, and LANES of them, as floats
inline float half(const void * from) {
#if defined(__x86_64__)
    return _cvtsh_ss(load<uint16_t>(from));
#else
    return (float) load<__fp16>(from);
#endif
}

inline Floats halves(const void * from) {
#if defined(__AVX512F__)
    return (Floats) _mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__AVX2__)
    return (Floats) _mm256_cvtph_ps(load<__m128i>(from));
#else
    return (Floats) vcvt_f32_f16(load<float16x4_t>(from));
#endif
}

}  // namespace
