// Puts the products of this library into llama.cpp's CPU backend, which is not changed for it.
//
// The backend asks each of its "extra buffer types" before it computes a node (ggml-cpu/traits.cpp); a type of ours is
// added to that list. It owns no memory: it takes products of quantised weights that lie in memory as they are stored,
// from some columns on, and computes them with the backend's own threads and work memory.
#include "ggml_abi.h"
#include "products.h"

#include <atomic>
#include <string.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// VARIANTS(X): X of each that was compiled, the best first; build.py gives it.
#define DECLARE(name) \
    extern "C" const Variant name; \
    extern "C" const Attend name##_attention;
VARIANTS(DECLARE)

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

#if defined(__x86_64__)
// Whether the CPU has tiles of bytes and Linux lets this process use them: it must be asked once, as their state is large.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr unsigned TILE = 1u << 24, INT8 = 1u << 25;
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    unsigned a = 7, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return d & TILE && d & INT8 && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

// All variants convert halves by it; clang has had no name for it for long.
bool has_f16c() {
    unsigned a = 1, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return c >> 29 & 1;
}
#endif

bool runs([[maybe_unused]] const Variant & variant) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return false;
    const bool vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (!strcmp(variant.name, "avx512_vnni")) return vnni;
    if (!strcmp(variant.name, "amx_int8")) return vnni && may_use_tiles();
    if (!strcmp(variant.name, "avx_vnni")) {
        // Which no compiler has a name for before gcc 14
        unsigned a = 7, b, c = 1, d;
        __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        return a >> 4 & 1;
    }
    return true;
#elif defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every Mac with an Apple CPU
#endif
}

const Variant * const all[] = {
#define ADDRESS(name) &name,
    VARIANTS(ADDRESS)};

const Attend attentions[] = {
#define ATTENTION_OF(name) name##_attention,
    VARIANTS(ATTENTION_OF)};

const Variant * chosen = nullptr;
Attend attend = nullptr;
std::atomic<int> least_columns{0}, least_of_pairs{0};
std::atomic<long> n_products{0};
void (*barrier)(ggml_threadpool *) = nullptr;
bool (*is_host)(ggml_backend_buffer *) = nullptr;

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

float param(const ggml_tensor * op, int i) {
    float value;
    memcpy(&value, &op->op_params[i], sizeof value);
    return value;
}

bool takes(const ggml_tensor * op) {
    if (op->op != GGML_OP_MUL_MAT || least_columns.load(std::memory_order_relaxed) <= 0) return false;
    const ggml_tensor *w = op->src[0], *x = op->src[1];
    // llama.cpp multiplies those two column by column, the others four by four.
    const bool pairs = w->type == Q4_1 || w->type == Q5_1;
    const int least = (pairs ? least_of_pairs : least_columns).load(std::memory_order_relaxed);
    return block_bytes(w->type) && (w->type != Q8_0 || chosen->takes_q8_0) && x->type == GGML_TYPE_F32 && op->type == GGML_TYPE_F32 &&
           x->ne[1] >= least && x->ne[2] == 1 && x->ne[3] == 1 && w->ne[2] == 1 && w->ne[3] == 1 && x->nb[0] == sizeof(float) &&
           op->nb[0] == sizeof(float) && w->nb[0] == block_bytes(w->type) && w->buffer && is_host(w->buffer);
}

struct Product : ggml::cpu::tensor_traits {
    ~Product() override {}

    // A counter, all columns, and a panel of rows for each thread
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        const size_t n_blocks = op->src[0]->ne[0] / BLOCK, n_tiles = up(op->src[1]->ne[1], COLUMNS) / COLUMNS;
        size = 128 + n_blocks * (n_tiles * sizeof(ColumnBlock) + n_threads * sizeof(RowBlock));
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const ggml_tensor *w = op->src[0], *x = op->src[1];
        const int type = w->type, n_blocks = (int) (w->ne[0] / BLOCK);
        const int n_rows = (int) w->ne[1], n_columns = (int) x->ne[1];
        const int n_panels = (int) up(n_rows, ROWS) / ROWS, n_tiles = (int) up(n_columns, COLUMNS) / COLUMNS;
        char * work = (char *) up((size_t) params->wdata, 64);
        auto * next = (std::atomic<int> *) work;
        auto * columns = (ColumnBlock *) (work + 64);
        auto * panel = (RowBlock *) (columns + (size_t) n_tiles * n_blocks) + (size_t) params->ith * n_blocks;

        if (params->ith == 0) {
            next->store(0, std::memory_order_relaxed);
            n_products.fetch_add(1, std::memory_order_relaxed);
        }
        for (int t = params->ith; t < n_tiles; t += params->nth) {
            const int first = t * COLUMNS, n = n_columns - first < COLUMNS ? n_columns - first : COLUMNS;
            chosen->quantise(type, (const char *) x->data + first * x->nb[1], x->nb[1], n, n_blocks, columns + (size_t) t * n_blocks);
        }
        barrier(params->threadpool);

        // Few rows are cut by columns too, so that every thread has some to do.
        int parts = 1;
        while (parts * 2 <= n_tiles / 4 && n_panels * parts < 8 * params->nth) parts *= 2;
        chosen->begin();
        for (int job; (job = next->fetch_add(1, std::memory_order_relaxed)) < n_panels * parts;) {
            const int row = job / parts * ROWS, part = job % parts;
            const int n = n_rows - row < ROWS ? n_rows - row : ROWS;
            chosen->unpack(type, (const char *) w->data + row * w->nb[1], w->nb[1], n, n_blocks, panel);
            for (int t = n_tiles * part / parts; t < n_tiles * (part + 1) / parts; t++) {
                const int column = t * COLUMNS, m = n_columns - column < COLUMNS ? n_columns - column : COLUMNS;
                chosen->multiply(type, panel, columns + (size_t) t * n_blocks, n_blocks, n, m,
                                 (float *) ((char *) op->data + column * op->nb[1]) + row, op->nb[1] / sizeof(float));
            }
        }
        chosen->end();
        return true;
    }
};

// Attention over K and V in F16, as softmax(q k * scale + mask) v: without a cap, biases of distance, or sinks
bool takes_attention(const ggml_tensor * op) {
    const int least = least_columns.load(std::memory_order_relaxed);
    if (op->op != GGML_OP_FLASH_ATTN_EXT || least <= 0) return false;
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
    const float bias = param(op, 1), cap = param(op, 2);
    return q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16 && op->type == GGML_TYPE_F32 &&
           q->ne[1] >= least && bias == 0 && cap == 0 && !op->src[4] && q->ne[0] % 16 == 0 && v->ne[0] == q->ne[0] &&
           q->nb[0] == sizeof(float) && k->nb[0] == 2 && v->nb[0] == 2 && op->nb[0] == sizeof(float) && v->ne[2] == k->ne[2] &&
           k->ne[3] == q->ne[3] && v->ne[3] == q->ne[3] && q->ne[2] % k->ne[2] == 0 &&
           (!mask || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1 && mask->nb[0] == 2 && (mask->ne[3] == 1 || mask->ne[3] == q->ne[3])));
}

struct Attention : ggml::cpu::tensor_traits {
    ~Attention() override {}

    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        size = 128 + n_threads * up(attention_work_bytes((int) op->src[0]->ne[0], heads(op)), 64);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
        const int group = (int) (q->ne[2] / k->ne[2]), at_once = heads(op), parts = (group + at_once - 1) / at_once;
        const int n_tokens = (int) q->ne[1], tiles = (n_tokens + QUERIES - 1) / QUERIES, n_shared = (int) k->ne[2];
        char * work = (char *) up((size_t) params->wdata, 64);
        auto * next = (std::atomic<int> *) work;
        work += 64 + params->ith * up(attention_work_bytes((int) q->ne[0], at_once), 64);
        if (params->ith == 0) {
            next->store(0, std::memory_order_relaxed);
            n_products.fetch_add(1, std::memory_order_relaxed);
        }
        barrier(params->threadpool);

        const int per_stream = n_shared * parts * tiles;
        for (int job; (job = next->fetch_add(1, std::memory_order_relaxed)) < per_stream * (int) q->ne[3];) {
            // The last tokens see most: they come first.
            const int stream = job / per_stream, tile = tiles - 1 - job % per_stream / (n_shared * parts);
            const int shared = job % (n_shared * parts) / parts, head = shared * group + job % parts * at_once;
            const int left = shared * group + group - head, token = tile * QUERIES;
            AttentionJob one = {};
            one.n_values = (int) q->ne[0];
            one.n_heads = left < at_once ? left : at_once;
            one.n_tokens = n_tokens - token < QUERIES ? n_tokens - token : QUERIES;
            one.n_cells = (int) k->ne[1];
            one.scale = param(op, 0);
            one.q = (const char *) q->data + stream * q->nb[3] + head * q->nb[2] + token * q->nb[1];
            one.k = (const char *) k->data + stream * k->nb[3] + shared * k->nb[2];
            one.v = (const char *) v->data + stream * v->nb[3] + shared * v->nb[2];
            if (mask) one.mask = (const char *) mask->data + (mask->ne[3] > 1 ? stream * mask->nb[3] : 0) + token * mask->nb[1];
            one.q_head_bytes = q->nb[2];
            one.q_token_bytes = q->nb[1];
            one.k_cell_bytes = k->nb[1];
            one.v_cell_bytes = v->nb[1];
            one.mask_token_bytes = mask ? mask->nb[1] : 0;
            // Heads and tokens change places.
            one.out = (char *) op->data + stream * op->nb[3] + token * op->nb[2] + head * op->nb[1];
            one.out_head_bytes = op->nb[1];
            one.out_token_bytes = op->nb[2];
            attend(one, work);
        }
        return true;
    }

  private:
    static int heads(const ggml_tensor * op) {
        const int group = (int) (op->src[0]->ne[2] / op->src[1]->ne[2]);
        return group < MOST_HEADS ? group : (int) MOST_HEADS;
    }
};

struct Taker : ggml::cpu::extra_buffer_type {
    ~Taker() override {}
    // Of tensors in buffers of this type, and there are none
    bool supports_op(ggml_backend_device *, const ggml_tensor *) override { return false; }
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        // Never destroyed, as a thread may compute still while the process ends
        static Product & product = *new Product;
        static Attention & attention = *new Attention;
        if (takes(op)) return &product;
        return takes_attention(op) ? &attention : nullptr;
    }
};

const char * buffer_name(ggml_backend_buffer_type *) { return "slm_edge_prompt_kernels"; }
ggml_backend_buffer * no_buffer(ggml_backend_buffer_type *, size_t) { return nullptr; }
size_t alignment(ggml_backend_buffer_type *) { return 64; }

// The place of a variant that runs here, or -1
int place_of(const char * name) {
    for (int i = 0; i < (int) (sizeof all / sizeof *all); i++)
        if (runs(*all[i]) && (!name || !*name || !strcmp(name, all[i]->name))) return i;
    return -1;
}

const Variant * variant_of(const char * name) {
    const int place = place_of(name);
    return place < 0 ? nullptr : all[place];
}

}  // namespace

namespace ggml::cpu {
tensor_traits::~tensor_traits() {}
extra_buffer_type::~extra_buffer_type() {}
}  // namespace ggml::cpu

#define PUBLIC extern "C" __attribute__((visibility("default")))

// The name of the variant for this CPU, or of the one that was asked for; null: there is none.
PUBLIC const char * prompt_kernels_variant(const char * name) {
    const Variant * variant = variant_of(name);
    return variant ? variant->name : nullptr;
}

// The size of ggml's tensor as this library knows it
PUBLIC size_t prompt_kernels_tensor_bytes() { return sizeof(ggml_tensor); }

// Joins llama.cpp's CPU backend with the variant of this name. Given are the addresses of its
// `ggml_backend_cpu_get_extra_buffer_types` and `ggml_barrier`, and of `ggml_backend_buffer_is_host`. Nothing is taken
// before `prompt_kernels_from`. Called twice it does nothing.
PUBLIC bool prompt_kernels_join(const char * name, extra_buffer_types_t types, void (*ggml_barrier)(ggml_threadpool *),
                                bool (*buffer_is_host)(ggml_backend_buffer *)) {
    if (chosen) return true;
    const int place = place_of(name);
    if (place < 0) return false;
    static ggml_backend_buffer_type type = {{buffer_name, no_buffer, alignment, nullptr, nullptr, nullptr}, nullptr, new Taker};
    barrier = ggml_barrier;
    is_host = buffer_is_host;
    chosen = all[place];
    attend = attentions[place];
    types().push_back(&type);
    return true;
}

// From so many columns on products are taken, of Q4_1 and Q5_1 from `of_pairs` on; 0: none. Not while a graph is computed.
PUBLIC void prompt_kernels_from(int columns, int of_pairs) {
    least_columns = columns;
    least_of_pairs = of_pairs;
}

// How many products were taken since the library was loaded
PUBLIC long prompt_kernels_count() { return n_products; }

// out[column][row] of weights as stored (rows without gaps) and columns of floats, by one thread; `work` has room for one
// ColumnBlock and one RowBlock for each block of a row, and 64 bytes. For tests, which need no llama.cpp for it. Returns
// false where the variant does not run here or does not take the type.
PUBLIC bool prompt_kernels_product(const char * name, int type, const void * weights, int n_values, int n_rows, const float * x,
                                   int n_columns, float * out, void * work) {
    const Variant * variant = variant_of(name);
    if (!variant || !block_bytes(type) || (type == Q8_0 && !variant->takes_q8_0)) return false;
    const int n_blocks = n_values / BLOCK;
    const size_t row_bytes = n_blocks * block_bytes(type);
    auto * columns = (ColumnBlock *) up((size_t) work, 64);
    auto * panel = (RowBlock *) (columns + n_blocks);
    variant->begin();
    for (int column = 0; column < n_columns; column += COLUMNS) {
        const int m = n_columns - column < COLUMNS ? n_columns - column : COLUMNS;
        variant->quantise(type, (const char *) (x + (size_t) column * n_values), n_values * sizeof(float), m, n_blocks, columns);
        for (int row = 0; row < n_rows; row += ROWS) {
            const int n = n_rows - row < ROWS ? n_rows - row : ROWS;
            variant->unpack(type, (const char *) weights + row * row_bytes, row_bytes, n, n_blocks, panel);
            variant->multiply(type, panel, columns, n_blocks, n, m, out + (size_t) column * n_rows + row, n_rows);
        }
    }
    variant->end();
    return true;
}

// Attention of [n_tokens][n_heads][n_values] over [n_cells][n_shared][n_values], by one thread; `work` has room for
// attention_work_bytes and 64 bytes. For tests. Returns false where the variant does not run here.
PUBLIC bool prompt_kernels_attention(const char * name, int n_values, int n_heads, int n_shared, int n_tokens, int n_cells,
                                     float scale, const float * q, const uint16_t * k, const uint16_t * v, const uint16_t * mask,
                                     float * out, void * work) {
    const int place = place_of(name), group = n_heads / n_shared;
    if (place < 0 || group > MOST_HEADS || n_values % 16) return false;
    for (int token = 0; token < n_tokens; token += QUERIES)
        for (int shared = 0; shared < n_shared; shared++) {
            const size_t first = ((size_t) token * n_heads + shared * group) * n_values, at = (size_t) shared * n_values;
            const size_t head = n_values * sizeof(float), cell = (size_t) n_shared * n_values * sizeof(uint16_t);
            const int n = n_tokens - token < QUERIES ? n_tokens - token : QUERIES;
            attentions[place]({n_values, group, n, n_cells, scale, (const char *) (q + first), (const char *) (k + at),
                               (const char *) (v + at), mask ? (const char *) (mask + (size_t) token * n_cells) : nullptr, head,
                               n_heads * head, cell, cell, n_cells * sizeof(uint16_t), (char *) (out + first), head, n_heads * head},
                              (void *) up((size_t) work, 64));
        }
    return true;
}
