// llama.cpp's node of attention by attention.cpp. Included by hook.cpp amid its namespace.
#pragma once

// Of so many tokens llama.cpp too leaves the way by which it computes single ones; of fewer its bits are theirs, so that the
// end of a prompt behind a kept beginning is computed as it was within the whole.
constexpr int LEAST_TOKENS = 64;

// Attention over K and V in F16, as softmax(q k * scale + mask) v: without a cap, biases of distance, or sinks
bool takes_attention(const ggml_tensor * op) {
    if (op->op != GGML_OP_FLASH_ATTN_EXT || least_columns.load(std::memory_order_relaxed) <= 0) return false;
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
    const float bias = param(op, 1), cap = param(op, 2);
    return q->type == F32 && k->type == F16 && v->type == F16 && op->type == F32 &&
           q->ne[1] >= LEAST_TOKENS && bias == 0 && cap == 0 && !op->src[4] && q->ne[0] % 16 == 0 && v->ne[0] == q->ne[0] &&
           q->nb[0] == sizeof(float) && k->nb[0] == 2 && v->nb[0] == 2 && op->nb[0] == sizeof(float) && v->ne[2] == k->ne[2] &&
           k->ne[3] == q->ne[3] && v->ne[3] == q->ne[3] && q->ne[2] % k->ne[2] == 0 &&
           (!mask || (mask->type == F16 && mask->ne[2] == 1 && mask->nb[0] == 2 && (mask->ne[3] == 1 || mask->ne[3] == q->ne[3])));
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
