// Puts the products of this library into llama.cpp's CPU backend, which is not changed for it.
//
// The backend asks each of its "extra buffer types" before it computes a node (ggml-cpu/traits.cpp); a type of ours is
// added to that list. It owns no memory: it takes products of quantised weights that lie in memory as they are stored,
// from some columns on, and computes them with the backend's own threads and work memory.
#include "updates.h"

#include <atomic>
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
std::atomic<long> n_products{0}, n_updates{0};
void (*barrier)(ggml_threadpool *) = nullptr;

bool takes(const ggml_tensor * op) {
    if (op->op != GGML_OP_MUL_MAT || least_columns.load(std::memory_order_relaxed) <= 0) return false;
    const ggml_tensor *w = op->src[0], *x = op->src[1];
    // llama.cpp multiplies those two column by column, the others four by four.
    const bool pairs = w->type == Q4_1 || w->type == Q5_1;
    const int least = (pairs ? least_of_pairs : least_columns).load(std::memory_order_relaxed);
    return block_bytes(w->type) && (w->type != Q8_0 || chosen->takes_q8_0) && x->type == F32 && op->type == F32 &&
           x->ne[1] >= least && x->ne[2] == 1 && x->ne[3] == 1 && w->ne[2] == 1 && w->ne[3] == 1 && x->nb[0] == sizeof(float) &&
           op->nb[0] == sizeof(float) && w->nb[0] == block_bytes(w->type) && w->buffer && is_host(w->buffer);
}

#include "product_nodes.h"
#include "attention_node.h"

struct Taker : ggml::cpu::extra_buffer_type {
    ~Taker() override {}
    // Of tensors in buffers of this type, and there are none
    bool supports_op(ggml_backend_device *, const ggml_tensor *) override { return false; }
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        // Never destroyed, as a thread may compute still while the process ends
        static Product & product = *new Product;
        static Inner & inner = *new Inner;
        static Adapters & adapters = *new Adapters;
        static Attention & attention = *new Attention;
        Update update;
        if (update_of(op, update)) return product_of(op, update.x) ? &adapters : nullptr;
        if (takes(op)) return &product;
        if (is_inner(op)) return &inner;
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

// How many updates by adapters apart from a product that was taken
PUBLIC long prompt_kernels_updates() { return n_updates; }

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
            variant->multiply(type, panel, columns, n_blocks, n, m, out + (size_t) column * n_rows + row, n_rows, false);
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

// out[column][row] += scale * B A x by the same ways as inside llama.cpp, by one thread: in floats as a few columns are
// computed, by tiles as many are, or with a product of weights of type `type_w` in place of what stands in `out`. For
// tests alone: not in a process that has joined.
PUBLIC bool prompt_kernels_update(const char * name, int type_w, void * w, int type_a, void * a, int type_b, void * b, int n_values,
                                  int rank, int n_rows, float scale, float * x, int n_columns, float * out, bool by_tiles) {
    const Variant * variant = variant_of(name);
    if (!variant || chosen) return false;
    auto * here = (ggml_backend_buffer *) name;
    auto matrix = [&](int type, const char * end, void * data, int n, int rows) {
        ggml_tensor made = {};
        made.type = type;
        made.buffer = here;
        made.ne[0] = n, made.ne[1] = rows, made.ne[2] = made.ne[3] = 1;
        made.nb[0] = type == F32 ? 4 : type == F16 ? 2 : block_bytes(type);
        made.nb[1] = type == F32 || type == F16 ? made.nb[0] * n : made.nb[0] * (n / BLOCK);
        made.data = data;
        strcpy(made.name, end);
        return made;
    };
    auto node = [&](int op, ggml_tensor * first, ggml_tensor * second) {
        ggml_tensor made = matrix(F32, "", out, n_rows, n_columns);
        made.op = op;
        made.src[0] = first;
        made.src[1] = second;
        return made;
    };
    ggml_tensor weights = matrix(type_w ? type_w : Q6_K, "", w, n_values, n_rows), columns = matrix(F32, "", x, n_values, n_columns);
    ggml_tensor down = matrix(type_a, ".lora_a", a, n_values, rank), up_again = matrix(type_b, ".lora_b", b, rank, n_rows);
    ggml_tensor product = node(GGML_OP_MUL_MAT, &weights, &columns), inner = node(GGML_OP_MUL_MAT, &down, &columns);
    ggml_tensor outer = node(GGML_OP_MUL_MAT, &up_again, &inner), scaled = node(GGML_OP_SCALE, &outer, nullptr);
    memcpy(scaled.op_params, &scale, sizeof scale);
    ggml_tensor add = node(GGML_OP_ADD, &product, &scaled);

    barrier = [](ggml_threadpool *) {};
    is_host = [](ggml_backend_buffer *) { return true; };
    chosen = variant;
    prompt_kernels_from(by_tiles ? 1 : n_columns + 1, by_tiles ? 1 : n_columns + 1);
    Taker taker;
    ggml_tensor * taken = type_w ? &product : &add;
    auto *traits = taker.get_tensor_traits(taken), *of_update = taker.get_tensor_traits(&add);
    const bool takes_it = traits && of_update;
    if (takes_it) {
        size_t size = 0;
        if (auto * of_inner = taker.get_tensor_traits(&inner)) of_inner->work_size(1, &inner, size);
        if (type_w) traits->work_size(1, &product, size);
        of_update->work_size(1, &add, size);
        std::vector<char> work(size);
        ggml_compute_params params = {0, 1, size, work.data(), nullptr, false};
        traits->compute_forward(&params, taken);
    }
    chosen = nullptr;
    prompt_kernels_from(0, 0);
    return takes_it;
}
