// What ggml 0.25.3 (MIT licence, The ggml authors) says of its tensors and of the CPU backend's extra buffer types: ggml.h,
// ggml-backend-impl.h, ggml-cpu/traits.h and ggml-cpu/ggml-cpu-impl.h, as far as it is needed. llama-cpp-python installs
// no such headers for its own; edge/llama/binding.py joins llama.cpp only where it says that it is this release.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <vector>

struct ggml_threadpool;
struct ggml_backend_buffer;
struct ggml_backend_device;
struct ggml_backend_buffer_type;

enum { GGML_OP_ADD = 2, GGML_OP_MUL_MAT = 29, GGML_OP_SCALE = 32, GGML_OP_FLASH_ATTN_EXT = 74, GGML_TENSOR_FLAG_COMPUTE = 16 };

struct ggml_tensor {
    int type;
    ggml_backend_buffer * buffer;
    int64_t ne[4];
    size_t nb[4];
    int op;
    int32_t op_params[16];
    int32_t flags;
    ggml_tensor * src[10];
    ggml_tensor * view_src;
    size_t view_offs;
    void * data;
    char name[64];
    void * extra;
    char padding[8];
};

struct ggml_compute_params {
    int ith, nth;
    size_t wsize;
    void * wdata;
    ggml_threadpool * threadpool;
    bool use_ref;
};

struct ggml_backend_buffer_type_i {
    const char * (*get_name)(ggml_backend_buffer_type *);
    ggml_backend_buffer * (*alloc_buffer)(ggml_backend_buffer_type *, size_t size);
    size_t (*get_alignment)(ggml_backend_buffer_type *);
    size_t (*get_max_size)(ggml_backend_buffer_type *);
    size_t (*get_alloc_size)(ggml_backend_buffer_type *, const ggml_tensor *);
    bool (*is_host)(ggml_backend_buffer_type *);
};

struct ggml_backend_buffer_type {
    ggml_backend_buffer_type_i iface;
    ggml_backend_device * device;
    void * context;
};

namespace ggml::cpu {
class tensor_traits {
  public:
    virtual ~tensor_traits();
    virtual bool work_size(int n_threads, const ggml_tensor * op, size_t & size) = 0;
    virtual bool compute_forward(ggml_compute_params * params, ggml_tensor * op) = 0;
};

class extra_buffer_type {
  public:
    virtual ~extra_buffer_type();
    virtual bool supports_op(ggml_backend_device * device, const ggml_tensor * op) = 0;
    virtual tensor_traits * get_tensor_traits(const ggml_tensor * op) = 0;
};
}  // namespace ggml::cpu

typedef std::vector<ggml_backend_buffer_type *> & (*extra_buffer_types_t)();
