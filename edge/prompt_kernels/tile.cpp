// The three steps of a product for one kind of CPU. Compiled once for each (see build.py), with VARIANT as its name and
// the compiler's flags for it; so nothing here may come from a header of the C++ library: a linker would keep one copy.
#include "products.h"
#include "vectors.h"

namespace {

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint64_t Longs __attribute__((vector_size(16)));

// ---- add_products: to the sums of some of the sixteen rows, four products each, of the rows' bytes with four of a column

#if defined(__AVX512VNNI__)
constexpr int PARTS = 1;
constexpr int Q8_BIAS = 128;
constexpr bool TAKES_Q8_0 = true;
typedef __m512i Part;
inline Part four_of(const int8_t * column) { return _mm512_set1_epi32(load<int32_t>(column)); }
inline Part add_products(Part sums, Part rows, Part four) { return _mm512_dpbusd_epi32(sums, rows, four); }
#elif defined(__AVX2__)
constexpr int PARTS = 2;
constexpr int Q8_BIAS = 128;
typedef __m256i Part;
inline Part four_of(const int8_t * column) { return _mm256_set1_epi32(load<int32_t>(column)); }
#if defined(__AVXVNNI__)
constexpr bool TAKES_Q8_0 = true;
inline Part add_products(Part sums, Part rows, Part four) { return _mm256_dpbusd_avx_epi32(sums, rows, four); }
#else
// Pairs of products are added in 16 bits: eight of at most 31 * 127 have room there, and none of 255 * 127.
#define PAIRS_FIRST 1
constexpr bool TAKES_Q8_0 = false;
inline Part pairs_of(Part rows, Part four) { return _mm256_maddubs_epi16(rows, four); }
inline Part add_pairs(Part sums, Part pairs) { return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int PARTS = 4;
constexpr int Q8_BIAS = 0;  // the dot product here takes signed weights, and the others' unsigned ones are below 32
constexpr bool TAKES_Q8_0 = true;
typedef int32x4_t Part;
inline Part four_of(const int8_t * column) { return vdupq_n_s32(load<int32_t>(column)); }
inline Part add_products(Part sums, Part rows, Part four) {
    return vdotq_s32(sums, vreinterpretq_s8_s32(rows), vreinterpretq_s8_s32(four));
}
#else
#error "no kernel for this CPU"
#endif

// `Floats` and `Ints` are the same vectors as numbers, for what every CPU does alike.
static_assert(LANES * PARTS == ROWS && sizeof(Part) == sizeof(Floats), "a vector has a number of each of some rows");

int bias_of(int type) { return type == Q4_0 ? 8 : type == Q5_0 ? 16 : type == Q8_0 ? Q8_BIAS : 0; }

// ---- activations

inline float largest(Ints sizes) {
#if defined(__AVX512F__)
    const int32_t most = _mm512_reduce_max_epi32((__m512i) sizes);
#else
    int32_t most = sizes[0];
    for (int i = 1; i < LANES; i++) most = sizes[i] > most ? sizes[i] : most;
#endif
    return load<float>(&most);
}

inline int sum_of(Ints v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i) v);
#else
    int sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
#endif
}

inline void store_bytes(const Ints * v, int8_t * out) {
#if defined(__AVX512F__)
    for (int h = 0; h < 2; h++) _mm_storeu_si128((__m128i *) (out + 16 * h), _mm512_cvtepi32_epi8((__m512i) v[h]));
#else
    int32_t values[BLOCK];
    memcpy(values, v, sizeof values);
    for (int i = 0; i < BLOCK; i++) out[i] = (int8_t) values[i];
#endif
}

// A block's values as whole numbers of at most 127; returns the greatest size.
inline float round_block(const Floats * x, Ints * whole) {
    constexpr int VECTORS = BLOCK / LANES;
    // The bits of numbers above zero are in the order of the numbers, and those of NaN above all: it is not lost.
    Ints most = {};
    for (int v = 0; v < VECTORS; v++) {
        const Ints size = (Ints) x[v] & INT32_MAX;
        most = size > most ? size : most;
    }
    const float range = largest(most), inverse = range > 0 ? 127.0f / range : 0.0f;
    // Adding 1.5 * 2^23 leaves the nearest whole number in the lowest bits.
    for (int v = 0; v < VECTORS; v++) whole[v] = (Ints) (x[v] * inverse + 12582912.0f) - 0x4B400000;
    return range;
}

void quantise(int type, const char * columns, size_t column_bytes, int n_columns, int n_blocks, ColumnBlock * out) {
    constexpr int VECTORS = BLOCK / LANES;
    const int bias = bias_of(type);
    for (int j = 0; j < COLUMNS; j++) {
        const char * column = columns + (size_t) (j < n_columns ? j : 0) * column_bytes;
        for (int b = 0; b < n_blocks; b++) {
            ColumnBlock & block = out[b];
            Floats x[VECTORS];
            for (int v = 0; v < VECTORS; v++) x[v] = load<Floats>(column + 4 * (BLOCK * b + LANES * v));
            Ints whole[VECTORS], sums = {};
            const float scale = round_block(x, whole) / 127.0f;
            for (int v = 0; v < VECTORS; v++) sums += whole[v];
            store_bytes(whole, block.q[j]);
            block.scale[j] = scale;
            const int sum = sum_of(sums);
            block.sum[j] = scale * (float) sum;
            block.start[j] = -bias * sum;
        }
    }
}

// ---- weights

// The fifth bits of sixteen values, at their place in a byte each
inline Bytes fifth_bits(const uint8_t * two) {
    const Longs spread = {two[0] * 0x0101010101010101u, two[1] * 0x0101010101010101u};
    const Bytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    return (Bytes) (((Bytes) spread & bit) == bit) & 16;
}

template <int TYPE> inline void values_of(const uint8_t * block, Bytes & first, Bytes & second) {
    if (TYPE == Q8_0) {
        first = load<Bytes>(block + 2) ^ (uint8_t) Q8_BIAS;
        second = load<Bytes>(block + 18) ^ (uint8_t) Q8_BIAS;
        return;
    }
    const uint8_t * at = block + (TYPE == Q4_1 || TYPE == Q5_1 ? 4 : 2);
    const Bytes packed = load<Bytes>(TYPE == Q5_0 || TYPE == Q5_1 ? at + 4 : at);
    first = packed & 15;
    second = packed >> 4;
    if (TYPE == Q5_0 || TYPE == Q5_1) {
        first |= fifth_bits(at);
        second |= fifth_bits(at + 2);
    }
}

#if defined(__clang__)
#define CHOSEN(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define CHOSEN(a, b, i, j, k, l) __builtin_shuffle(a, b, Words{i, j, k, l})
#endif

// Four values of four rows each, turned: out[i] has the i-th four of all four rows. 64 bytes lie between two of `out`.
inline void turn(const Bytes * rows, uint8_t * out) {
    const Words a = (Words) rows[0], b = (Words) rows[1], c = (Words) rows[2], d = (Words) rows[3];
    const Words ab = CHOSEN(a, b, 0, 4, 1, 5), cd = CHOSEN(c, d, 0, 4, 1, 5);
    const Words ef = CHOSEN(a, b, 2, 6, 3, 7), gh = CHOSEN(c, d, 2, 6, 3, 7);
    const Words turned[4] = {CHOSEN(ab, cd, 0, 1, 4, 5), CHOSEN(ab, cd, 2, 3, 6, 7), CHOSEN(ef, gh, 0, 1, 4, 5),
                             CHOSEN(ef, gh, 2, 3, 6, 7)};
    for (int i = 0; i < 4; i++) memcpy(out + 64 * i, &turned[i], 16);
}

template <int TYPE>
void unpack_type(const char * rows, size_t row_bytes, int n_rows, int n_blocks, RowBlock * out) {
    for (int b = 0; b < n_blocks; b++) {
        for (int r = 0; r < ROWS; r += 4) {
            Bytes first[4], second[4];
            for (int i = 0; i < 4; i++) {
                // Behind the last row it is taken again, and its results are not stored.
                const int row = r + i < n_rows ? r + i : n_rows - 1;
                const uint8_t * block = (const uint8_t *) rows + (size_t) row * row_bytes + b * block_bytes(TYPE);
                values_of<TYPE>(block, first[i], second[i]);
                out[b].scale[r + i] = half(block);
                if (has_offset(TYPE)) out[b].offset[r + i] = half(block + 2);
            }
            turn(first, out[b].q[0][r]);
            turn(second, out[b].q[4][r]);
        }
    }
}

void unpack(int type, const char * rows, size_t row_bytes, int n_rows, int n_blocks, RowBlock * out) {
    switch (type) {
        case Q4_0: unpack_type<Q4_0>(rows, row_bytes, n_rows, n_blocks, out); break;
        case Q4_1: unpack_type<Q4_1>(rows, row_bytes, n_rows, n_blocks, out); break;
        case Q5_0: unpack_type<Q5_0>(rows, row_bytes, n_rows, n_blocks, out); break;
        case Q5_1: unpack_type<Q5_1>(rows, row_bytes, n_rows, n_blocks, out); break;
        default: unpack_type<Q8_0>(rows, row_bytes, n_rows, n_blocks, out);
    }
}

// ---- the tile

// Results of sixteen rows with N columns: out[column][row]
template <int N, bool OFFSET>
void some_columns(const RowBlock * rows, const ColumnBlock * columns, int from, int n_blocks, float * out) {
    Floats sums[N][PARTS] = {};
    for (int b = 0; b < n_blocks; b++) {
        const RowBlock & row = rows[b];
        const ColumnBlock & column = columns[b];
        Part products[N][PARTS];
#pragma GCC unroll 16
        for (int j = 0; j < N; j++)
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) products[j][p] = (Part) (OFFSET ? Ints{} : Ints{} + column.start[from + j]);
#if PAIRS_FIRST
        Part pairs[N][PARTS];
#endif
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            Part weights[PARTS];
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) weights[p] = load<Part>(row.q[i][p * LANES]);
#pragma GCC unroll 16
            for (int j = 0; j < N; j++) {
                const Part four = four_of(column.q[from + j] + 4 * i);
#pragma GCC unroll 4
                for (int p = 0; p < PARTS; p++) {
#if PAIRS_FIRST
                    const Part next = pairs_of(weights[p], four);
                    pairs[j][p] = i % 4 ? _mm256_add_epi16(pairs[j][p], next) : next;
                    if (i % 4 == 3) products[j][p] = add_pairs(products[j][p], pairs[j][p]);
#else
                    products[j][p] = add_products(products[j][p], weights[p], four);
#endif
                }
            }
        }
#pragma GCC unroll 4
        for (int p = 0; p < PARTS; p++) {
            const Floats scale = load<Floats>(row.scale + p * LANES);
#pragma GCC unroll 16
            for (int j = 0; j < N; j++) {
                sums[j][p] += (__builtin_convertvector((Ints) products[j][p], Floats) * scale) * column.scale[from + j];
                if (OFFSET) sums[j][p] += load<Floats>(row.offset + p * LANES) * column.sum[from + j];
            }
        }
    }
    memcpy(out + from * ROWS, sums, sizeof sums);
}

#if defined(__AMX_INT8__)
// The same sums of sixteen columns, by the unit that multiplies matrices of bytes: a block of columns and one of rows lie
// in memory as it takes them. Its whole numbers are those of `some_columns`, and so are the steps after them.
constexpr int AHEAD = 4;  // blocks at once, so that one's numbers are written while another's are scaled
struct alignas(64) TileShapes {
    uint8_t palette = 1, first = 0, none[14] = {};
    uint16_t row_bytes[16] = {64, 32, 64};
    uint8_t n_rows[16] = {ROWS, COLUMNS, BLOCK / 4};
};
constexpr TileShapes SHAPES;

// By hand, since gcc before 14 says to its optimiser that _tile_loadconfig reads 8 bytes
inline void begin_tiles() { __asm__ volatile("ldtilecfg %0" : : "m"(SHAPES)); }
inline void end_tiles() { _tile_release(); }

template <bool OFFSET> void sixteen_columns(const RowBlock * rows, const ColumnBlock * columns, int n_blocks, float * out) {
    Floats sums[COLUMNS] = {};
    Ints products[AHEAD][COLUMNS];
    for (int from = 0; from < n_blocks; from += AHEAD) {
        const int n = n_blocks - from < AHEAD ? n_blocks - from : AHEAD;
        for (int i = 0; i < n; i++) {
            _tile_zero(0);
            _tile_loadd(1, columns[from + i].q, BLOCK);
            _tile_loadd(2, rows[from + i].q, 64);
            _tile_dpbsud(0, 1, 2);
            _tile_stored(0, products[i], 64);
        }
        for (int i = 0; i < n; i++) {
            const RowBlock & row = rows[from + i];
            const ColumnBlock & column = columns[from + i];
            const Floats scale = load<Floats>(row.scale), offset = OFFSET ? load<Floats>(row.offset) : Floats{};
#pragma GCC unroll 16
            for (int j = 0; j < COLUMNS; j++) {
                const Ints whole = OFFSET ? products[i][j] : products[i][j] + column.start[j];
                sums[j] += (__builtin_convertvector(whole, Floats) * scale) * column.scale[j];
                if (OFFSET) sums[j] += offset * column.sum[j];
            }
        }
    }
    memcpy(out, sums, sizeof sums);
}
#endif

template <bool OFFSET>
void tile(const RowBlock * rows, const ColumnBlock * columns, int n_blocks, int n_columns, float * out) {
#if defined(__AMX_INT8__)
    if (n_columns > 4) return sixteen_columns<OFFSET>(rows, columns, n_blocks, out);
#endif
    if (PARTS == 1) {
        if (n_columns > 12) some_columns<16, OFFSET>(rows, columns, 0, n_blocks, out);
        else if (n_columns > 8) some_columns<12, OFFSET>(rows, columns, 0, n_blocks, out);
        else if (n_columns > 4) some_columns<8, OFFSET>(rows, columns, 0, n_blocks, out);
        else some_columns<4, OFFSET>(rows, columns, 0, n_blocks, out);
    } else {
        for (int j = 0; j < n_columns; j += 4) some_columns<4, OFFSET>(rows, columns, j, n_blocks, out);
    }
}

void multiply(int type, const RowBlock * rows, const ColumnBlock * columns, int n_blocks, int n_rows, int n_columns,
              float * out, ptrdiff_t out_stride, bool add) {
    float results[COLUMNS * ROWS] __attribute__((aligned(64)));
    if (has_offset(type)) tile<true>(rows, columns, n_blocks, n_columns, results);
    else tile<false>(rows, columns, n_blocks, n_columns, results);
    for (int j = 0; j < n_columns; j++) {
        float * to = out + j * out_stride;
        const float * from = results + j * ROWS;
        if (!add) memcpy(to, from, (size_t) n_rows * sizeof(float));
        else if (n_rows == ROWS) for (int i = 0; i < ROWS; i++) to[i] += from[i];
        else for (int i = 0; i < n_rows; i++) to[i] += from[i];
    }
}

#if !defined(__AMX_INT8__)
void begin_tiles() {}
void end_tiles() {}
#endif

#include "adapter_rows.h"

}  // namespace

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
extern "C" {
extern const Variant VARIANT;
const Variant VARIANT = {TEXT(VARIANT), TAKES_Q8_0, quantise, unpack, multiply, begin_tiles, end_tiles,
                         N_PARTS, {N_PARTS == 1 ? Q8_0 : Q4_0, Q4_1}, unpack_part, multiply_floats};
}
