/* AVX2: bytes are widened to int16, and vpmaddwd adds the products of neighbouring pairs to int32, exactly.
 *
 * vpmaddubsw would take bytes as they are, but its int16 sums saturate: wrong by an eighth at +-127. */
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

#define UNIT 2
#define OFFSET 0
#define ROWS 4
#define PANELS 2
#define TOGETHER 1
#define ATTENTION_ROWS 2
#define ATTENTION_BLOCK 4
#define MAX_HEAD 256
#define WIDTH 8
typedef int16_t digit;
typedef float vec __attribute__((vector_size(32)));
typedef uint32_t bits_vec __attribute__((vector_size(32)));
#define splat(x) ((vec)_mm256_set1_ps(x))
#define fma_(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))

#include "layer.h"

/* sums (M, 2 vectors of 8 outputs) += a group of rows by a group of one panel. */
INLINE void add_group(const int rows, const int bits, const uint8_t *weight, const digit *x, int32_t ld, int32_t group, __m256i sums[ROWS][2]) {
    const __m256i low = _mm256_set1_epi8(15);
    const int step = bits == 8 ? 2 : 4;
    for (int32_t k = 0; k < group; k += step) {
        const __m256i loaded = _mm256_loadu_si256((const __m256i *)(weight + (size_t)k / (size_t)step * 32));
#pragma GCC unroll 2
        for (int half = 0; half < step / 2; half++) {
            __m256i bytes = loaded, w[2];
            if (bits == 8) {
                w[0] = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes));
                w[1] = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1));
            } else {
                bytes = _mm256_and_si256(half ? _mm256_srli_epi16(bytes, 4) : bytes, low);
                w[0] = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes));
                w[1] = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1));
            }
#pragma GCC unroll 4
            for (int m = 0; m < rows; m++) {
                int32_t two;
                memcpy(&two, x + (size_t)m * ld + k + half * 2, sizeof two);
                const __m256i value = _mm256_set1_epi32(two);
                sums[m][0] = _mm256_add_epi32(sums[m][0], _mm256_madd_epi16(w[0], value));
                sums[m][1] = _mm256_add_epi32(sums[m][1], _mm256_madd_epi16(w[1], value));
            }
        }
    }
}

INLINE void tile_of(const int rows, const int bits, const Linear *linear, int32_t panel, const uint8_t *weight,
                    const Rows *x, int32_t row, int32_t first, int32_t last, float y[][PANELS * PANEL], int32_t column) {
    const int32_t group = bits == 8 ? GROUP : x->group, ld = row_step(x), groups = x->groups;
    const size_t group_bytes = (size_t)group * PANEL * bits / 8, at = (size_t)row * groups;
    __m256 out[ROWS][2];
    for (int m = 0; m < rows; m++)
        for (int half = 0; half < 2; half++) out[m][half] = _mm256_loadu_ps(y[m] + column + half * 8);
    for (int32_t g = first; g < last; g++, weight += group_bytes) {
        __m256 scale[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int half = 0; half < 2 && bits == 4; half++) {
            const uint16_t *from = linear->group_scale + ((size_t)panel * groups + g) * PANEL + half * 8;
            const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
            scale[half] = _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
        }
        const digit *digits = digits_of(x, row, g);
        const int32_t *start = x->start + at + g;
        __m256i sums[ROWS][2];
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) sums[m][0] = sums[m][1] = _mm256_set1_epi32(start[(size_t)m * groups]);
        add_group(rows, bits, weight, digits, ld, group, sums);
#pragma GCC unroll 4
        for (int m = 0; m < rows; m++) {
            const __m256 factor = _mm256_set1_ps(x->scale[at + (size_t)m * groups + g]);
            for (int half = 0; half < 2; half++) {
                const __m256 f = bits == 8 ? factor : _mm256_mul_ps(factor, scale[half]);
                out[m][half] = _mm256_add_ps(out[m][half], _mm256_mul_ps(_mm256_cvtepi32_ps(sums[m][half]), f));
            }
        }
    }
    for (int m = 0; m < rows; m++)
        for (int half = 0; half < 2; half++) _mm256_storeu_ps(y[m] + column + half * 8, out[m][half]);
}

#define CASE(m, b)                                                          \
    case (m) * 16 + (b):                                                    \
        tile_of(m, b, linears[p], panel[p], weights[p], x, row, first, last, y, p * PANEL);\
        break;
#define CASES(m) CASE(m, 8) CASE(m, 4)

static void tile(int rows, int panels, const Linear *const linears[PANELS], const int32_t panel[PANELS],
                 const uint8_t *const weights[PANELS], const Rows *x, int32_t row, int32_t first, int32_t last,
                 float y[][PANELS * PANEL]) {
    for (int p = 0; p < panels; p++) {
        switch (rows * 16 + linears[p]->bits) { CASES(1) CASES(2) CASES(3) CASES(4) }
    }
}

const Kernels chuan_avx2 = {"avx2", UNIT, OFFSET, linear_space, run_linear, layer_space, run_layer};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
