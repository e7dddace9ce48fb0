"""llama.cpp's products by AMX tiles are left out of its CPU backend."""

import ctypes
import subprocess
from pathlib import Path

import pytest
from slm_edge.edge.llama.binding import _cpu_backend, _leave_amx_out, _Vector, lib
from slm_edge.edge.llama.model import cpu_features
from slm_edge.edge.prompt_kernels.build import _compilers

SOURCE = """
#include <vector>
static int amx, repack, ours;
void * ggml_backend_amx_buffer_type() { return HAS ? &amx : nullptr; }
std::vector<void *> & ggml_backend_cpu_get_extra_buffer_types() {
    static std::vector<void *> types = LIST;
    return types;
}
extern "C" int others() {
    int n = 0;
    for (void * type : ggml_backend_cpu_get_extra_buffer_types()) {
        if (type != &repack && type != &ours) return -1;
        n++;
    }
    return n;
}
extern "C" void join() { ggml_backend_cpu_get_extra_buffer_types().push_back(&ours); }
"""


@pytest.mark.parametrize(
    ("has", "entries", "left"),
    [(1, "{&amx, &repack}", 1), (1, "{&repack, &amx}", 1), (1, "{&amx}", 0), (1, "{&repack}", 1), (0, "{&repack}", 1)],
)
def test_the_list_keeps_the_others_and_takes_more(tmp_path, has, entries, left):
    compiler = next(_compilers(), None)
    if compiler is None:
        pytest.skip("no C++ compiler here")
    source, library = tmp_path / "types.cpp", tmp_path / "types.so"
    source.write_text(SOURCE.replace("HAS", str(has)).replace("LIST", entries))
    subprocess.run([*compiler, "-std=gnu++17", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    types = ctypes.CDLL(str(library))
    _leave_amx_out(types)
    _leave_amx_out(types)
    assert types.others() == left
    types.join()
    assert types.others() == left + 1


def test_llama_cpp_has_no_amx_product_in_use():
    if "AMX_INT8" not in cpu_features():
        pytest.skip("this CPU has no AMX, or this llama.cpp was built without it")
    llama_cpp = lib()
    cpu = _cpu_backend(llama_cpp, Path(llama_cpp.__file__).parent / "lib")
    amx, types = cpu._Z28ggml_backend_amx_buffer_typev, cpu._Z39ggml_backend_cpu_get_extra_buffer_typesv
    amx.restype, types.restype = ctypes.c_void_p, ctypes.POINTER(_Vector)
    vector = types().contents
    n = (vector.end - vector.begin) // ctypes.sizeof(ctypes.c_void_p)
    pointers = list((ctypes.c_void_p * n).from_address(vector.begin))
    assert amx() not in pointers
    # What is left still has names: no pointer was cut.
    llama_cpp._lib.ggml_backend_buft_name.restype = ctypes.c_char_p
    llama_cpp._lib.ggml_backend_buft_name.argtypes = [ctypes.c_void_p]
    assert all(llama_cpp._lib.ggml_backend_buft_name(pointer) for pointer in pointers)
