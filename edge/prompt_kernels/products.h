// Products of quantised weights with many columns of activations: what the parts of this library share.
//
// Weights are taken as they are stored in GGUF (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 values along a row). Sixteen
// rows are unpacked side by side, so that one vector holds four values of each of them; sixteen columns of activations
// are quantised to bytes. A tile of 16 x 16 results is then a sum over blocks, in one order whatever the tile's place
// and the number of columns: each result depends on its row and its column alone.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { ROWS = 16, COLUMNS = 16, BLOCK = 32 };

// Numbers of ggml_type
enum Type { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q6_K = 14, BF16 = 30 };

// One block of sixteen rows
struct RowBlock {
    uint8_t q[BLOCK / 4][ROWS][4];
    float scale[ROWS];
    float offset[ROWS];  // Q4_1 and Q5_1: what a block's values start at
};

// One block of sixteen columns
struct ColumnBlock {
    int8_t q[COLUMNS][BLOCK];
    float scale[COLUMNS];
    // The sum of the column's values: what an offset is multiplied with
    float sum[COLUMNS];
    // The sum that makes signed weights of the unsigned ones: -8 times the sum of the bytes for Q4_0, whose values are
    // stored as 0 to 15 and mean -8 to 7.
    int32_t start[COLUMNS];
};

// An adapter's matrix, of floats or Q8_0, is rounded to eight bits, and so are blocks of it. Where a kernel has no room for
// eight, the upper and the lower four bits are two blocks.
enum { MOST_PARTS = 2 };

// The three steps as compiled for one kind of CPU
struct Variant {
    const char * name;
    bool takes_q8_0;
    void (*quantise)(int type, const char * columns, size_t column_bytes, int n_columns, int n_blocks, ColumnBlock * out);
    void (*unpack)(int type, const char * rows, size_t row_bytes, int n_rows, int n_blocks, RowBlock * out);
    // out: [n_columns][n_rows], columns `out_stride` floats apart; added to what stands there or in place of it
    void (*multiply)(int type, const RowBlock * rows, const ColumnBlock * columns, int n_blocks, int n_rows, int n_columns,
                     float * out, ptrdiff_t out_stride, bool add);
    // Around a thread's multiplications
    void (*begin)();
    void (*end)();

    // Of an adapter's matrices (F32, F16, Q8_0): the parts of eight bits; the type that columns are quantised for, one for
    // each part, where the weights have no offsets; and a part's rows, filled up with zeros to whole blocks.
    int n_parts;
    int part_types[MOST_PARTS];
    void (*unpack_part)(int part, int type, const char * rows, size_t row_bytes, int n_rows, int n_values, RowBlock * out);
    // out[row] (+)= row * column, in floats: for few columns. The order of the sum follows from n_values alone.
    void (*multiply_floats)(int type, const char * rows, size_t row_bytes, int n_rows, int n_values, const float * column,
                            float * out, bool add);
};

static inline bool has_offset(int type) { return type == Q4_1 || type == Q5_1; }

static inline bool is_adapters(int type) { return type == F32 || type == F16 || type == Q8_0; }

static inline size_t block_bytes(int type) {
    switch (type) {
        case Q4_0: return 18;
        case Q4_1: return 20;
        case Q5_0: return 22;
        case Q5_1: return 24;
        case Q8_0: return 34;
        default: return 0;
    }
}

// ---- attention.cpp: a token's results of all heads over one head of K and V

enum { QUERIES = 16, CELLS = 64, MOST_HEADS = 8 };

// Up to QUERIES tokens, and up to MOST_HEADS heads. q: floats; k, v, mask: halves; n_values: a multiple of 16.
struct AttentionJob {
    int n_values, n_heads, n_tokens, n_cells;
    float scale;
    const char *q, *k, *v, *mask;  // mask: [token][cell], or null
    size_t q_head_bytes, q_token_bytes, k_cell_bytes, v_cell_bytes, mask_token_bytes;
    char * out;
    size_t out_head_bytes, out_token_bytes;
};

static inline size_t attention_work_bytes(int n_values, int n_heads) {
    const size_t n_lanes = (size_t) n_heads * QUERIES;
    return sizeof(float) * (2 * n_values * n_lanes + 2 * CELLS * n_values + CELLS * n_lanes + CELLS * QUERIES + 3 * n_lanes);
}

typedef void (*Attend)(const AttentionJob & job, void * work);
