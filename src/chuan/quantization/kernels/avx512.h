/* What the files with AVX-512 share: the size of their vectors, and tiles by VNNI. vpdpbusd multiplies four unsigned by four
 * signed bytes and adds them to an int32, exactly.
 *
 * The weights are the unsigned side (an int8 plus 128, a nibble as it is), so that an activation can be broadcast from
 * memory; what the offset adds is taken off beforehand, in the sum's first value. A file that includes this defines ROWS
 * and TOGETHER. */
#ifndef CHUAN_AVX512_H
#define CHUAN_AVX512_H

#include <immintrin.h>

#define UNIT 4
#define OFFSET 128
#define PANELS 2
#define ATTENTION_ROWS 4
#define ATTENTION_BLOCK 4
#define MAX_HEAD 256
#define WIDTH 16
/* Bytes that are fetched ahead: the processor's own prefetch stops at each page, and a step of five or eight rows was a
 * quarter slower. Into the second cache, because the first has few lines under way. */
#define AHEAD (bits == 8 ? 4096 : 1024)
typedef int8_t digit;
typedef float vec __attribute__((vector_size(64)));
typedef uint32_t bits_vec __attribute__((vector_size(64)));
#define splat(x) ((vec)_mm512_set1_ps(x))
#define fma_(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))

#include "layer.h"

#define TILE_ROWS 8

/* A group's scales of a panel, at 4 bits. */
INLINE __m512 load_scale(const Linear *linear, int32_t panel, int32_t groups, int32_t group) {
    const uint16_t *from = linear->group_scale + ((size_t)panel * groups + group) * PANEL;
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* sums (M, P) += four inputs of each row by four of each panel. Assembly, because GCC 12 copies every sum twice. */
#define ADD_FOUR(weights, offset)                                                                     \
    _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++) {                                          \
        int32_t four;                                                                                 \
        memcpy(&four, digits + (size_t)m * ld + (offset), sizeof four);                               \
        const __m512i value = _mm512_set1_epi32(four);                                                \
        _Pragma("GCC unroll 8") for (int p = 0; p < panels; p++)                                      \
            __asm__("vpdpbusd %2, %1, %0" : "+v"(sums[m][p]) : "v"(weights[p]), "v"(value));          \
    }

/* All loops but those over groups and inputs are unrolled, in one function, for GCC 12 to keep all sums in registers:
 * `rows`, `panels` and `bits` are constants wherever it is called. */
INLINE void tile_of(const int rows, const int panels, const int bits, const Linear *const linears[PANELS],
                    const int32_t panel[PANELS], const uint8_t *const weights[PANELS], const Rows *x, int32_t row,
                    int32_t first, int32_t last, float y[][PANELS * PANEL]) {
    const int32_t group = bits == 8 ? GROUP : x->group, ld = row_step(x), groups = x->groups;
    const size_t group_bytes = (size_t)group * PANEL * bits / 8, at = (size_t)row * groups;
    const __m512i low = _mm512_set1_epi8(15);
    const uint8_t *weight[PANELS];
    __m512 out[TILE_ROWS][PANELS];
    for (int p = 0; p < panels; p++) weight[p] = weights[p];
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) out[m][p] = _mm512_loadu_ps(y[m] + p * PANEL);
    for (int32_t g = first; g < last; g++) {
        __m512 scale[PANELS];
#pragma GCC unroll 8
        for (int p = 0; p < panels && bits == 4; p++) scale[p] = load_scale(linears[p], panel[p], groups, g);
        const digit *digits = digits_of(x, row, g);
        const int32_t *start = x->start + at + g;
        const float *factor = x->scale + at + g;
        __m512i sums[TILE_ROWS][PANELS];
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++) sums[m][p] = _mm512_set1_epi32(start[(size_t)m * groups]);
        if (bits == 8) {
#pragma GCC unroll 1
            for (int k = 0; k < GROUP / 4; k++) {
                __m512i w[PANELS];
#pragma GCC unroll 8
                for (int p = 0; p < panels; p++) {
                    w[p] = _mm512_loadu_si512(weight[p] + k * 64);
                    _mm_prefetch((const char *)weight[p] + k * 64 + AHEAD, _MM_HINT_T1);
                }
                ADD_FOUR(w, k * 4)
            }
        } else {
            for (int32_t k = 0; k < group / 8; k++) {
                __m512i w[PANELS], high[PANELS];
#pragma GCC unroll 8
                for (int p = 0; p < panels; p++) {
                    w[p] = _mm512_loadu_si512(weight[p] + k * 64);
                    _mm_prefetch((const char *)weight[p] + k * 64 + AHEAD, _MM_HINT_T1);
                    high[p] = _mm512_and_si512(_mm512_srli_epi16(w[p], 4), low);
                    w[p] = _mm512_and_si512(w[p], low);
                }
                ADD_FOUR(w, k * 8)
                ADD_FOUR(high, k * 8 + 4)
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++) {
            const __m512 f = _mm512_set1_ps(factor[(size_t)m * groups]);
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++) {
                const __m512 sum = _mm512_cvtepi32_ps(sums[m][p]);
                const __m512 product = _mm512_mul_ps(sum, bits == 8 ? f : _mm512_mul_ps(f, scale[p]));
                out[m][p] = _mm512_add_ps(out[m][p], product);
            }
        }
        for (int p = 0; p < panels; p++) weight[p] += group_bytes;
    }
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) _mm512_storeu_ps(y[m] + p * PANEL, out[m][p]);
}

#define CASE(m, p, b)                                         \
    case (m) * 16 + (p) * 8 + (b) / 4 - 1:                    \
        tile_of(m, p, b, linears, panel, weights, x, row, first, last, y); \
        break;
#define CASES(m) CASE(m, 1, 8) CASE(m, 2, 8) CASE(m, 1, 4) CASE(m, 2, 4)

static void tile(int rows, int panels, const Linear *const linears[PANELS], const int32_t panel[PANELS],
                 const uint8_t *const weights[PANELS], const Rows *x, int32_t row, int32_t first, int32_t last,
                 float y[][PANELS * PANEL]) {
    switch (rows * 16 + panels * 8 + linears[0]->bits / 4 - 1) {
        CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6) CASES(7) CASES(8)
    }
}

#endif
