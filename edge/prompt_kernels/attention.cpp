// Attention of some tokens, for one kind of CPU: softmax(q k + mask) v of all heads that share one head of K and V.
//
// Compiled once for each kind, as tile.cpp is, and like it depends on no header of the C++ library. K and V are read once
// for sixteen tokens of all these heads, 64 cells at a time, with the running greatest score of "online softmax"
// (Milakov and Gimelshein, 2018); cells that no token sees are passed over. A vector holds one number of so many tokens
// while scores are computed and some values of one token while they weigh V: nothing is summed across a vector, so a
// token's result depends on its own query, K, V and mask alone.
#include "products.h"
#include "vectors.h"

namespace {

constexpr int KEYS = LANES == 8 ? 4 : 8;
// Vectors of scores at once, and of V: what the registers hold with the sums
constexpr int AT_ONCE = 3, OF_V = LANES == 8 ? 2 : 4, TOKENS_OF_V = 4;
constexpr float LEAST = -1e30f;
constexpr uint16_t HIDDEN = 0xFC00;  // -inf, of the mask

template <class T> inline void store(void * to, T value) { memcpy(to, &value, sizeof value); }

inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }

// e^x for x <= 0, within 2 units of the last place; 0 below -87. The polynomial is that of Cephes' expf (S. Moshier).
inline Floats power_of_e(Floats x) {
    const Ints hidden = x <= -87.0f;
    x = hidden ? Floats{} : x;
    const Floats shifted = x * 1.44269504088896341f + 12582912.0f, n = shifted - 12582912.0f;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats y = x * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    const Floats power_of_two = (Floats) (((Ints) shifted - (0x4B400000 - 127)) << 23);
    return (Floats) ((Ints) (y * power_of_two) & ~hidden);
}

// scores[key][lane] = sum over values of k[key][value] * q[value][lane], for VECTORS vectors of lanes
template <int VECTORS>
void score(const float * q, const float * k, int n_values, int n_lanes, float * scores) {
    for (int from = 0; from < CELLS; from += KEYS) {
        Floats sums[KEYS][VECTORS] = {};
        const float * key = k + from * n_values;
        for (int d = 0; d < n_values; d++) {
            Floats queries[VECTORS];
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) queries[v] = load<Floats>(q + (size_t) d * n_lanes + v * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < KEYS; i++)
#pragma GCC unroll 3
                for (int v = 0; v < VECTORS; v++) sums[i][v] += queries[v] * key[i * n_values + d];
        }
#pragma GCC unroll 8
        for (int i = 0; i < KEYS; i++)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) store(scores + (size_t) (from + i) * n_lanes + v * LANES, sums[i][v]);
    }
}

// out[token][value] = out * shrink[token] + sum over keys of weights[key][token] * v[key][value], of TOKENS_OF_V tokens
template <int VECTORS>
void weigh(const float * weights, int n_lanes, const float * shrink, const float * v, int n_values, float * out) {
    Floats sums[TOKENS_OF_V][VECTORS];
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS_OF_V; t++)
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) sums[t][i] = load<Floats>(out + t * n_values + i * LANES) * shrink[t];
    for (int key = 0; key < CELLS; key++) {
        Floats values[VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) values[i] = load<Floats>(v + key * n_values + i * LANES);
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS_OF_V; t++)
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; i++) sums[t][i] += values[i] * weights[(size_t) key * n_lanes + t];
    }
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS_OF_V; t++)
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) store(out + t * n_values + i * LANES, sums[t][i]);
}

// What the tokens see of some cells: 0 nothing, 1 all and nothing is added, 2 else
int seen(const AttentionJob & job, int from, int n_cells) {
    bool none = true, all = true;
    for (int t = 0; t < job.n_tokens; t++) {
        const auto * row = (const uint16_t *) (job.mask + t * job.mask_token_bytes) + from;
        uint16_t any = 0, other = 0;
        for (int i = 0; i < n_cells; i++) {
            any |= row[i];
            other |= row[i] ^ HIDDEN;
        }
        none = none && !other;
        all = all && !any;
    }
    return none ? 0 : all ? 1 : 2;
}

void widen(const char * rows, size_t row_bytes, int n_rows, int n_values, float * out) {
    for (int i = 0; i < n_rows; i++)
        for (int d = 0; d < n_values; d += LANES) store(out + i * n_values + d, halves(rows + i * row_bytes + 2 * d));
    // What lies behind the last cell weighs nothing, but must be a number.
    memset(out + (size_t) n_rows * n_values, 0, sizeof(float) * n_values * (CELLS - n_rows));
}

void attend(const AttentionJob & job, void * work) {
    const int n_values = job.n_values, n_lanes = job.n_heads * QUERIES, n_vectors = n_lanes / LANES;
    auto * q = (float *) work;                       // [n_values][n_lanes], a lane for each head and token
    float * k = q + (size_t) n_values * n_lanes;     // [CELLS][n_values]
    float * v = k + CELLS * n_values;                // the same
    float * scores = v + CELLS * n_values;           // [CELLS][n_lanes]
    float * out = scores + (size_t) CELLS * n_lanes;  // [n_lanes][n_values]
    float * mask = out + (size_t) n_lanes * n_values;  // [CELLS][QUERIES]
    float * most = mask + CELLS * QUERIES;           // [n_lanes]
    float * total = most + n_lanes;
    float * shrink = total + n_lanes;

    for (int h = 0; h < job.n_heads; h++)
        for (int t = 0; t < QUERIES; t++) {
            const auto * query = (const float *) (job.q + h * job.q_head_bytes + (t < job.n_tokens ? t : 0) * job.q_token_bytes);
            for (int d = 0; d < n_values; d++) q[(size_t) d * n_lanes + h * QUERIES + t] = query[d] * job.scale;
        }
    memset(out, 0, sizeof(float) * n_lanes * n_values);
    memset(total, 0, sizeof(float) * n_lanes);
    for (int i = 0; i < n_lanes; i++) most[i] = LEAST;

    for (int from = 0; from < job.n_cells; from += CELLS) {
        const int n = job.n_cells - from < CELLS ? job.n_cells - from : CELLS;
        const int sees = job.mask ? seen(job, from, n) : 1;
        if (!sees) continue;
        const bool masked = sees == 2 || n < CELLS;
        if (masked)
            for (int t = 0; t < QUERIES; t++) {
                const int token = t < job.n_tokens ? t : 0;
                const auto * row = (const uint16_t *) (job.mask + token * job.mask_token_bytes) + from;
                for (int i = 0; i < CELLS; i++)
                    mask[i * QUERIES + t] = i >= n ? half(&HIDDEN) : job.mask ? half(row + i) : 0.0f;
            }
        widen(job.k + from * job.k_cell_bytes, job.k_cell_bytes, n, n_values, k);
        widen(job.v + from * job.v_cell_bytes, job.v_cell_bytes, n, n_values, v);

        int at = 0;
        for (; at + AT_ONCE <= n_vectors; at += AT_ONCE) score<AT_ONCE>(q + at * LANES, k, n_values, n_lanes, scores + at * LANES);
        for (; at < n_vectors; at++) score<1>(q + at * LANES, k, n_values, n_lanes, scores + at * LANES);

        for (int i = 0; i < n_vectors; i++) {
            float * column = scores + i * LANES;
            const float * added = mask + i * LANES % QUERIES;
            Floats top = load<Floats>(most + i * LANES);
            const Floats before = top;
            for (int key = 0; key < CELLS; key++) {
                Floats one = load<Floats>(column + (size_t) key * n_lanes);
                if (masked) {
                    one += load<Floats>(added + key * QUERIES);
                    store(column + (size_t) key * n_lanes, one);
                }
                top = greater(one, top);
            }
            const Floats less = power_of_e(before - top);
            Floats sum = load<Floats>(total + i * LANES) * less;
            for (int key = 0; key < CELLS; key++) {
                const Floats weight = power_of_e(load<Floats>(column + (size_t) key * n_lanes) - top);
                store(column + (size_t) key * n_lanes, weight);
                sum += weight;
            }
            store(most + i * LANES, top);
            store(total + i * LANES, sum);
            store(shrink + i * LANES, less);
        }

        for (int lane = 0; lane < n_lanes; lane += TOKENS_OF_V) {
            int d = 0;
            float * to = out + (size_t) lane * n_values;
            for (; d + OF_V * LANES <= n_values; d += OF_V * LANES) weigh<OF_V>(scores + lane, n_lanes, shrink + lane, v + d, n_values, to + d);
            for (; d < n_values; d += LANES) weigh<1>(scores + lane, n_lanes, shrink + lane, v + d, n_values, to + d);
        }
    }

    for (int h = 0; h < job.n_heads; h++)
        for (int t = 0; t < job.n_tokens; t++) {
            const int lane = h * QUERIES + t;
            const float part = total[lane] > 0 ? 1.0f / total[lane] : 0.0f;
            auto * to = (float *) (job.out + t * job.out_token_bytes + h * job.out_head_bytes);
            for (int d = 0; d < n_values; d++) to[d] = out[(size_t) lane * n_values + d] * part;
        }
}

}  // namespace

#define ATTENTION_OF(name) name##_attention
#define ATTENTION(name) ATTENTION_OF(name)
extern "C" {
extern const Attend ATTENTION(VARIANT);
const Attend ATTENTION(VARIANT) = attend;
}
