// llama.cpp's nodes of products by tile.cpp, each with the updates of adapters, or those alone. Included by hook.cpp amid its
// namespace.
#pragma once

struct Job {
    const ggml_tensor *w, *x;  // w may be null
    const ggml_tensor * out;
    const ggml_tensor *last, *stop;  // updates from here down, and what is no more one of them
};

size_t work_bytes(int n_threads, const Job & job, int n_extra, int most_rank) {
    const size_t n_blocks = job.x->ne[0] / BLOCK + n_extra, n_tiles = up(job.x->ne[1], COLUMNS) / COLUMNS;
    return 192 + n_blocks * (n_tiles * sizeof(ColumnBlock) + n_threads * sizeof(RowBlock)) +
           n_tiles * COLUMNS * up(most_rank, BLOCK) * sizeof(float);
}

// For each token x becomes blocks of bytes, then what A makes of it some more of them; B's rows are some more blocks behind
// those of w. So an update costs a tile a block for each 32 of its rank.
void compute(const ggml_compute_params * params, const Job & job, int n_extra) {
    const ggml_tensor *w = job.w, *x = job.x;
    const int type = w ? w->type : Q4_1, n_own = (int) (x->ne[0] / BLOCK), n_stride = n_own + n_extra;
    const int n_rows = (int) job.out->ne[0], n_columns = (int) x->ne[1];
    const int n_panels = (int) up(n_rows, ROWS) / ROWS, n_tiles = (int) up(n_columns, COLUMNS) / COLUMNS;
    char * work = (char *) up((size_t) params->wdata, 64);
    auto * next = (std::atomic<int> *) work;
    auto * columns = (ColumnBlock *) (work + 64);
    auto * panels = (RowBlock *) (columns + (size_t) n_tiles * n_stride);
    auto * panel = panels + (size_t) params->ith * n_stride;
    auto * inner = (float *) (panels + (size_t) params->nth * n_stride);

    if (params->ith == 0) next->store(0, std::memory_order_relaxed);
    chosen->begin();
    auto of_tiles = [&](auto && f) {
        for (int t = params->ith; t < n_tiles; t += params->nth) {
            const int first = t * COLUMNS;
            f(columns + (size_t) t * n_stride, first, n_columns - first < COLUMNS ? n_columns - first : COLUMNS);
        }
    };
    of_tiles([&](ColumnBlock * to, int first, int n) {
        chosen->quantise(type, (const char *) x->data + first * x->nb[1], x->nb[1], n, n_own, to);
    });
    int at = n_own;
    Update update;
    for (auto * node = job.last; node != job.stop; node = node->src[0]) {
        update_of(node, update);
        const int rank = update.rank(), padded = update.n_blocks() * BLOCK;
        const ggml_tensor * a = update.a;
        for (int row = 0; row < padded; row += ROWS) {
            const int n = rank - row < ROWS ? rank - row : ROWS;
            for (int part = 0; part < chosen->n_parts && n > 0; part++) {
                chosen->unpack_part(part, a->type, (const char *) a->data + row * a->nb[1], a->nb[1], n, (int) a->ne[0], panel);
                of_tiles([&](ColumnBlock * from, int first, int m) {
                    chosen->multiply(Q4_1, panel, from, n_own, n, m, inner + (size_t) first * padded + row, padded, part);
                });
            }
        }
        of_tiles([&](ColumnBlock * to, int first, int m) {
            float * values = inner + (size_t) first * padded;
            for (int j = 0; j < m; j++)
                for (int i = 0; i < padded; i++) values[j * padded + i] = i < rank ? values[j * padded + i] * update.scale : 0.0f;
            for (int part = 0; part < chosen->n_parts; part++)
                chosen->quantise(chosen->part_types[part], (const char *) values, padded * sizeof(float), m, update.n_blocks(),
                                 to + at + part * update.n_blocks());
        });
        at += update.n_blocks() * chosen->n_parts;
    }
    barrier(params->threadpool);

    // Few rows are cut by columns too, so that every thread has some to do.
    int cuts = 1;
    while (cuts * 2 <= n_tiles / 4 && n_panels * cuts < 8 * params->nth) cuts *= 2;
    const int skipped = w ? 0 : n_own;
    for (int i; (i = next->fetch_add(1, std::memory_order_relaxed)) < n_panels * cuts;) {
        const int row = i / cuts * ROWS, cut = i % cuts;
        const int n = n_rows - row < ROWS ? n_rows - row : ROWS;
        if (w) chosen->unpack(type, (const char *) w->data + row * w->nb[1], w->nb[1], n, n_own, panel);
        RowBlock * more = panel + n_own;
        for (auto * node = job.last; node != job.stop; node = node->src[0]) {
            update_of(node, update);
            const ggml_tensor * b = update.b;
            for (int part = 0; part < chosen->n_parts; part++, more += update.n_blocks())
                chosen->unpack_part(part, b->type, (const char *) b->data + row * b->nb[1], b->nb[1], n, (int) b->ne[0], more);
        }
        for (int t = n_tiles * cut / cuts; t < n_tiles * (cut + 1) / cuts; t++) {
            const int column = t * COLUMNS, m = n_columns - column < COLUMNS ? n_columns - column : COLUMNS;
            chosen->multiply(type, panel + skipped, columns + (size_t) t * n_stride + skipped, n_stride - skipped, n, m,
                             (float *) ((char *) job.out->data + column * job.out->nb[1]) + row, job.out->nb[1] / sizeof(float), !w);
        }
    }
    chosen->end();
}

struct Product : ggml::cpu::tensor_traits {
    ~Product() override {}

    // In its `extra`: that it is planned, or the last of the updates that were planned with it.
    static Job job(const ggml_tensor * op, int & n_extra, int & most_rank) {
        const auto * last = op->extra == &planned ? nullptr : (const ggml_tensor *) op->extra;
        n_extra = blocks_of(last, chosen->n_parts, most_rank);
        return {op->src[0], op->src[1], op, last ? last : op, op};
    }

    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        ((ggml_tensor *) op)->extra = &planned;
        size = work_bytes(n_threads, {op->src[0], op->src[1], op, op, op}, 0, 0);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        int n_extra, most_rank;
        const Job all = job(op, n_extra, most_rank);
        compute(params, all, n_extra);
        if (params->ith == 0) {  // the others have passed the barrier in there, and what they read before it
            n_products.fetch_add(1, std::memory_order_relaxed);
            op->extra = nullptr;
        }
        return true;
    }
};

// A x as llama.cpp computes it. Where a graph is computed in pieces (other backends, an observer of nodes), it may be done
// before its update is planned, and what follows from it may stand in the place of x then.
struct Inner : ggml::cpu::tensor_traits {
    ~Inner() override {}

    bool work_size(int, const ggml_tensor * op, size_t &) override {
        ((ggml_tensor *) op)->extra = &planned;
        return false;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (params->ith == 0) op->extra = nullptr;
        return false;
    }
};

// Of this many multiplications on each thread makes A x for itself rather than wait for the others.
constexpr long ALONE = 1 << 16;

struct Adapters : ggml::cpu::tensor_traits {
    ~Adapters() override {}

    // As many as a product by these weights is taken with
    static bool are_many(const Update & update, const ggml_tensor * w) {
        const bool pairs = w->type == Q4_1 || w->type == Q5_1;
        return update.x->ne[1] >= (pairs ? least_of_pairs : least_columns);
    }

    static bool by_tiles(const Update & update, const ggml_tensor * w) {
        return are_many(update, w) && update.x->ne[0] % BLOCK == 0;
    }

    // Whether llama.cpp rounds nothing of this product to bytes: then no update is either.
    static bool is_of_floats(const ggml_tensor * w) { return w->type == F32 || w->type == F16 || w->type == BF16; }

    // While a graph is planned, by one thread and before it is computed: nodes whose work is done elsewhere are taken out,
    // which saves their barriers, or are put back where nothing is taken any more, or A x is done already.
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        auto * add = (ggml_tensor *) op;
        Update update;
        update_of(add, update);
        ggml_tensor *scale = add->src[1], *outer = scale->src[0], *w = product_of(add, update.x);
        const bool on = least_columns > 0 && outer->src[1]->extra && !(is_of_floats(w->src[0]) && are_many(update, w->src[0]));
        const bool with_product = on && w->extra && takes(w);
        for (ggml_tensor * node : {scale, outer, outer->src[1]}) computed(node, !on);
        computed(add, !with_product);
        if (with_product) w->extra = add;
        if (!on) return false;
        int most_rank;
        const int n_extra = blocks_of(add, chosen->n_parts, most_rank);
        if (with_product) size = work_bytes(n_threads, {w, update.x, w, add, w}, n_extra, most_rank);
        else if (by_tiles(update, w->src[0])) size = work_bytes(n_threads, {nullptr, update.x, add, add, add->src[0]}, n_extra, most_rank);
        else size = 64 + n_threads * update.x->ne[1] * up(update.rank(), 16) * sizeof(float);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * add) override {
        Update update;
        update_of(add, update);
        if (update.inner->flags & GGML_TENSOR_FLAG_COMPUTE) return false;  // not taken as it was planned
        const ggml_tensor *a = update.a, *b = update.b, *x = update.x, *w = product_of(add, x)->src[0];
        if (params->ith == 0) n_updates.fetch_add(1, std::memory_order_relaxed);
        if (by_tiles(update, w)) {
            compute(params, {nullptr, x, add, add, add->src[0]}, update.n_blocks() * chosen->n_parts);
            return true;
        }
        const int rank = update.rank(), n_columns = (int) x->ne[1], stride = (int) up(rank, 16), n_rows = (int) add->ne[0];
        const bool alone = (long) rank * a->ne[0] * n_columns <= ALONE || params->nth == 1;
        float * inner = (float *) up((size_t) params->wdata, 64) + (alone ? (size_t) params->ith * n_columns * stride : 0);
        auto share = [&](int n, int i) { return (int) ((long) n * i / params->nth) / 4 * 4; };
        const int from = alone ? 0 : share(rank, params->ith), to = alone || params->ith + 1 == params->nth ? rank : share(rank, params->ith + 1);
        for (int j = 0; j < n_columns; j++) {
            float * values = inner + (size_t) j * stride;
            chosen->multiply_floats(a->type, (const char *) a->data + from * a->nb[1], a->nb[1], to - from, (int) a->ne[0],
                                    (const float *) ((const char *) x->data + j * x->nb[1]), values + from, false);
            for (int i = from; i < to; i++) values[i] *= update.scale;
        }
        if (!alone) barrier(params->threadpool);
        const int first = share(n_rows, params->ith), end = params->ith + 1 == params->nth ? n_rows : share(n_rows, params->ith + 1);
        for (int j = 0; j < n_columns; j++)
            chosen->multiply_floats(b->type, (const char *) b->data + first * b->nb[1], b->nb[1], end - first, rank,
                                    inner + (size_t) j * stride, (float *) ((char *) add->data + j * add->nb[1]) + first, true);
        return true;
    }

  private:
    static void computed(ggml_tensor * node, bool is) {
        node->flags = is ? node->flags | GGML_TENSOR_FLAG_COMPUTE : node->flags & ~GGML_TENSOR_FLAG_COMPUTE;
    }
};
