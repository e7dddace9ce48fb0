// Runs the library on another machine's CPU, under an emulator:
//     LIBRARY VARIANT TYPE VALUES ROWS COLUMNS [RANK TYPE_A BYTES_A TYPE_B BYTES_B BY_TILES] < in > out
//     LIBRARY VARIANT attention VALUES HEADS SHARED TOKENS CELLS SCALE < in > out
// An adapter's update, if its rank is named, has its bytes after the columns: A, B, then the weights, or with TYPE 0 what it
// is added to.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

template <class T> static bool all(std::vector<T> & to) { return fread(to.data(), sizeof(T), to.size(), stdin) == to.size(); }

static int attention(void * library, char ** argv) {
    auto attend = (bool (*)(const char *, int, int, int, int, int, float, const float *, const uint16_t *, const uint16_t *,
                            const uint16_t *, float *, void *)) dlsym(library, "prompt_kernels_attention");
    const int values = atoi(argv[4]), heads = atoi(argv[5]), shared = atoi(argv[6]), tokens = atoi(argv[7]), cells = atoi(argv[8]);
    std::vector<float> q((size_t) tokens * heads * values), out(q.size()), work((size_t) 1 << 20);
    std::vector<uint16_t> k((size_t) cells * shared * values), v(k.size()), mask((size_t) tokens * cells);
    if (!all(q) || !all(k) || !all(v) || !all(mask)) return 3;
    if (!attend(argv[2], values, heads, shared, tokens, cells, strtof(argv[9], nullptr), q.data(), k.data(), v.data(), mask.data(),
                out.data(), work.data()))
        return 4;
    fwrite(out.data(), sizeof(float), out.size(), stdout);
    return 0;
}

int main(int argc, char ** argv) {
    void * library = dlopen(argv[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
    if (!strcmp(argv[3], "attention")) return attention(library, argv);
    auto product = (bool (*)(const char *, int, const void *, int, int, const float *, int, float *, void *)) dlsym(
        library, "prompt_kernels_product");
    const int type = atoi(argv[3]), n_values = atoi(argv[4]), n_rows = atoi(argv[5]), n_columns = atoi(argv[6]);
    std::vector<float> x((size_t) n_values * n_columns), out((size_t) n_rows * n_columns);
    std::vector<char> weights, work(64 + n_values / 32 * 1344);
    if (!all(x)) return 3;
    for (int byte; (byte = getchar()) != EOF;) weights.push_back((char) byte);
    if (argc > 7) {
        auto update = (bool (*)(const char *, int, void *, int, void *, int, void *, int, int, int, float, float *, int, float *, bool)) dlsym(
            library, "prompt_kernels_update");
        const int rank = atoi(argv[7]), type_a = atoi(argv[8]), bytes_a = atoi(argv[9]), type_b = atoi(argv[10]), bytes_b = atoi(argv[11]);
        char *a = weights.data(), *b = a + bytes_a, *w = b + bytes_b;
        if (type == 0) memcpy(out.data(), w, out.size() * sizeof(float));
        if (!update(argv[2], type, w, type_a, a, type_b, b, n_values, rank, n_rows, 0.7f, x.data(), n_columns, out.data(), atoi(argv[12]))) return 5;
    } else if (!product(argv[2], type, weights.data(), n_values, n_rows, x.data(), n_columns, out.data(), work.data())) return 4;
    fwrite(out.data(), sizeof(float), out.size(), stdout);
}
