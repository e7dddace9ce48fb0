// An adapter's matrices (F32, F16, Q8_0). Included by tile.cpp amid its namespace, whose vectors these are.
#pragma once

// LANES bytes as numbers
inline Floats whole_floats(const uint8_t * q) {
#if defined(__AVX512F__)
    return (Floats) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load<__m128i>(q)));
#elif defined(__AVX2__)
    return (Floats) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) q)));
#else
    const int16x4_t low = vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(load<int32_t>(q)))));
    return (Floats) vcvtq_f32_s32(vmovl_s16(low));
#endif
}

// LANES values of a row, from the i-th on, which is a whole number of LANES
template <int TYPE> inline Floats floats_of(const char * row, int i) {
    if (TYPE == F32) return load<Floats>(row + 4 * i);
    if (TYPE == F16) return halves(row + 2 * i);
    const uint8_t * block = (const uint8_t *) row + i / BLOCK * block_bytes(Q8_0);
    return whole_floats(block + 2 + i % BLOCK) * half(block);
}

// The last n values, fewer than LANES, and zeros
template <int TYPE> inline Floats last_floats(const char * row, int i, int n) {
    if (TYPE == Q8_0) return Floats{};  // blocks are whole
    constexpr int BYTES = TYPE == F32 ? 4 : 2;
    char values[LANES * BYTES] = {};
    memcpy(values, row + BYTES * i, (size_t) (BYTES * n));
    return floats_of<TYPE>(values, 0);
}

inline float total(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512) v);
#else
    float sum[LANES];
    memcpy(sum, &v, sizeof sum);
#pragma GCC unroll 4
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) sum[i] += sum[i + n];
    return sum[0];
#endif
}

// Results of N rows. `whole`: behind their last values so many others may be read that a vector is full.
template <int TYPE, int N>
inline void some_rows(const char * rows, size_t row_bytes, int n_values, bool whole, const float * column, Floats last, float * out,
                      bool add) {
    const int n_full = n_values / LANES * LANES, n_last = n_values - n_full;
    Floats sums[N] = {};
    if (TYPE == Q8_0) {
        // Rows are whole blocks, and each block has one scale.
        for (int i = 0; i < n_values; i += BLOCK)
#pragma GCC unroll 4
            for (int r = 0; r < N; r++) {
                const uint8_t * block = (const uint8_t *) rows + r * row_bytes + i / BLOCK * block_bytes(Q8_0);
                Floats sum = {};
#pragma GCC unroll 8
                for (int v = 0; v < BLOCK; v += LANES) sum += whole_floats(block + 2 + v) * load<Floats>(column + i + v);
                sums[r] += sum * half(block);
            }
    } else {
        for (int i = 0; i < n_full; i += LANES)
#pragma GCC unroll 4
            for (int r = 0; r < N; r++) sums[r] += floats_of<TYPE>(rows + r * row_bytes, i) * load<Floats>(column + i);
    }
    if (n_last) {
#pragma GCC unroll 4
        for (int r = 0; r < N; r++) {
            const char * row = rows + r * row_bytes;
            sums[r] += (whole ? floats_of<TYPE>(row, n_full) : last_floats<TYPE>(row, n_full, n_last)) * last;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) out[r] = (add ? out[r] : 0.0f) + total(sums[r]);
}

template <int TYPE>
void multiply_type(const char * rows, size_t row_bytes, int n_rows, int n_values, const float * column, float * out, bool add) {
    const int n_last = n_values % LANES;
    const Floats last = n_last ? last_floats<F32>((const char *) column, n_values - n_last, n_last) : Floats{};
    // What lies behind a row is finite and is multiplied by zero; behind the last rows it may be another's memory.
    const char * safe = rows + n_rows * row_bytes - LANES * sizeof(float);
    int r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        const char * four = rows + r * row_bytes;
        const bool whole = TYPE == Q8_0 || four + 4 * row_bytes <= safe;
        some_rows<TYPE, 4>(four, row_bytes, n_values, whole, column, last, out + r, add);
    }
    for (; r < n_rows; r++) some_rows<TYPE, 1>(rows + r * row_bytes, row_bytes, n_values, false, column, last, out + r, add);
}

void multiply_floats(int type, const char * rows, size_t row_bytes, int n_rows, int n_values, const float * column, float * out,
                     bool add) {
    switch (type) {
        case F32: multiply_type<F32>(rows, row_bytes, n_rows, n_values, column, out, add); break;
        case F16: multiply_type<F16>(rows, row_bytes, n_rows, n_values, column, out, add); break;
        default: multiply_type<Q8_0>(rows, row_bytes, n_rows, n_values, column, out, add);
    }
}

constexpr int N_PARTS = TAKES_Q8_0 ? 1 : 2;

template <int TYPE>
void unpack_part_type(int part, const char * rows, size_t row_bytes, int n_rows, int n_values, RowBlock * out) {
    constexpr int VECTORS = BLOCK / LANES;
    const int bias = N_PARTS == 1 ? Q8_BIAS : part ? 0 : 8;
    for (int b = 0; b * BLOCK < n_values; b++)
        for (int r = 0; r < ROWS; r += 4) {
            Bytes first[4], second[4];
            for (int i = 0; i < 4; i++) {
                const char * row = rows + (size_t) (r + i < n_rows ? r + i : n_rows - 1) * row_bytes;
                Floats x[VECTORS];
                for (int v = 0; v < VECTORS; v++) {
                    const int at = BLOCK * b + LANES * v, n = n_values - at;
                    x[v] = n >= LANES ? floats_of<TYPE>(row, at) : n > 0 ? last_floats<TYPE>(row, at, n) : Floats{};
                }
                Ints whole[VECTORS];
                float scale = round_block(x, whole) / 127.0f;
                int8_t bytes[BLOCK];
                store_bytes(whole, bytes);
                first[i] = load<Bytes>(bytes);
                second[i] = load<Bytes>(bytes + 16);
                if (N_PARTS == 1) {
                    first[i] ^= (uint8_t) Q8_BIAS;
                    second[i] ^= (uint8_t) Q8_BIAS;
                } else if (part == 0) {
                    first[i] = (first[i] ^ 128) >> 4;
                    second[i] = (second[i] ^ 128) >> 4;
                    scale *= 16;
                } else {
                    first[i] &= 15;
                    second[i] &= 15;
                }
                out[b].scale[r + i] = scale;
                out[b].offset[r + i] = -(float) bias * scale;
            }
            turn(first, out[b].q[0][r]);
            turn(second, out[b].q[4][r]);
        }
}

void unpack_part(int part, int type, const char * rows, size_t row_bytes, int n_rows, int n_values, RowBlock * out) {
    switch (type) {
        case F32: unpack_part_type<F32>(part, rows, row_bytes, n_rows, n_values, out); break;
        case F16: unpack_part_type<F16>(part, rows, row_bytes, n_rows, n_values, out); break;
        default: unpack_part_type<Q8_0>(part, rows, row_bytes, n_rows, n_values, out);
    }
}
