// The nodes by which llama.cpp adds an adapter's update to a product: ADD(product, SCALE(MUL_MAT(B, MUL_MAT(A, x)))), where the
// product is of x too.
#pragma once
#include "ggml_abi.h"
#include "products.h"

#include <string.h>

namespace {

bool (*is_host)(ggml_backend_buffer *) = nullptr;

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

float param(const ggml_tensor * op, int i) {
    float value;
    memcpy(&value, &op->op_params[i], sizeof value);
    return value;
}

struct Update {
    const ggml_tensor *a, *b, *x, *inner;  // inner: A x
    float scale;
    int rank() const { return (int) a->ne[1]; }
    int n_blocks() const { return (int) up(rank(), BLOCK) / BLOCK; }
};

bool ends_with(const char * name, const char * end) {
    const size_t n = strnlen(name, sizeof ggml_tensor::name), m = strlen(end);
    return n >= m && !memcmp(name + n - m, end, m);
}

bool is_matrix(const ggml_tensor * t, const char * name_end) {
    return is_adapters(t->type) && ends_with(t->name, name_end) && t->ne[2] == 1 && t->ne[3] == 1 && t->buffer && is_host(t->buffer) &&
           t->nb[0] == (t->type == Q8_0 ? block_bytes(Q8_0) : t->type == F16 ? 2u : 4u);
}

// In the `extra` of products and of A x: that they are planned and not computed yet
char planned;

bool is_inner(const ggml_tensor * op) { return op->op == GGML_OP_MUL_MAT && is_matrix(op->src[0], ".lora_a"); }

// By a node's sources alone, so that it is the same answer whenever and by whomever it is asked. What is added stands in
// the product's place, and x is not given to others between: llama.cpp builds these nodes one right after the other
// (build_lora_mm), and nothing is written but the product once they are taken.
bool update_of(const ggml_tensor * add, Update & update) {
    const ggml_tensor * scale = add->op == GGML_OP_ADD ? add->src[1] : nullptr;
    if (!scale || scale->op != GGML_OP_SCALE) return false;
    const ggml_tensor *outer = scale->src[0], *product = add->src[0];
    if (outer->op != GGML_OP_MUL_MAT || outer->src[1]->op != GGML_OP_MUL_MAT) return false;
    const ggml_tensor *b = outer->src[0], *a = outer->src[1]->src[0], *x = outer->src[1]->src[1];
    update.scale = param(scale, 0);
    update.a = a;
    update.b = b;
    update.x = x;
    update.inner = outer->src[1];
    return is_matrix(a, ".lora_a") && is_matrix(b, ".lora_b") && param(scale, 1) == 0 && x->type == F32 && x->nb[0] == sizeof(float) &&
           x->ne[2] == 1 && x->ne[3] == 1 && add->type == F32 && add->nb[0] == sizeof(float) && add->data == product->data &&
           add->nb[1] == product->nb[1];
}

// The product that an update belongs to, below those of other adapters; null: it is not the one that llama.cpp builds.
ggml_tensor * product_of(const ggml_tensor * add, const ggml_tensor * x) {
    ggml_tensor * node = add->src[0];
    for (Update below; node->op == GGML_OP_ADD; node = node->src[0])
        if (!update_of(node, below) || below.x != x) return nullptr;
    return node->op == GGML_OP_MUL_MAT && node->src[1] == x ? node : nullptr;
}

// The blocks that the updates from `last` down to the product add to each row and column, and the highest rank
int blocks_of(const ggml_tensor * last, int n_parts, int & most_rank) {
    int n = 0;
    most_rank = 0;
    Update update;
    for (; last && update_of(last, update); last = last->src[0]) {
        n += update.n_blocks() * n_parts;
        if (update.rank() > most_rank) most_rank = update.rank();
        if (last->src[0]->op != GGML_OP_ADD) break;
    }
    return n;
}

}  // namespace
