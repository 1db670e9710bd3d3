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
#define ATTENTION_ROWS 4
#include "avx512.h"

#include "attention.h"

static void multiply_block(const Linear *const linears[PANELS], const int32_t panel[PANELS], int32_t panels,
                           const Quantized *x, int32_t row, int32_t rows, float y[][PANELS * PANEL]) {
    multiply_by_tiles(tile, ROWS, NULL, NULL, linears, panel, panels, x, row, rows, y);
}

const Kernels chuan_avx512_vnni = {"avx512_vnni", UNIT, OFFSET, linear_space, run_linear, layer_space, run_layer};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
