// Runs the library's product on another machine's CPU, under an emulator: LIBRARY VARIANT TYPE VALUES ROWS COLUMNS < in > out
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

int main(int, char ** argv) {
    void * library = dlopen(argv[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
    auto product = (bool (*)(const char *, int, const void *, int, int, const float *, int, float *, void *)) dlsym(
        library, "prompt_kernels_product");
    const int type = atoi(argv[3]), n_values = atoi(argv[4]), n_rows = atoi(argv[5]), n_columns = atoi(argv[6]);
    std::vector<float> x((size_t) n_values * n_columns), out((size_t) n_rows * n_columns);
    std::vector<char> weights, work(64 + n_values / 32 * 1280);
    if (fread(x.data(), sizeof(float), x.size(), stdin) != x.size()) return 3;
    for (int byte; (byte = getchar()) != EOF;) weights.push_back((char) byte);
    if (!product(argv[2], type, weights.data(), n_values, n_rows, x.data(), n_columns, out.data(), work.data())) return 4;
    fwrite(out.data(), sizeof(float), out.size(), stdout);
}
