/* AVX-512 with VNNI: tiles of up to eight rows. */
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")
#endif
#define ROWS 8
#define TOGETHER 1
#include "avx512.h"

const Kernels chuan_avx512_vnni = {"avx512_vnni", UNIT, OFFSET, linear_space, run_linear, layer_space, run_layer};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
