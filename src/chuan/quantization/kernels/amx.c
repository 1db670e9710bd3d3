/* Advanced Matrix Extensions: tdpbssd multiplies 16 rows of 64 signed bytes by 64 x 16 of them, exactly, in the time of 16
 * instructions of vpdpbusd, each of which does a sixteenth of it.
 *
 * A panel's group of 64 inputs lies as a tile wants it. Products of FEW rows stay with VNNI. */
#include "kernels.h"

#if defined(HAS_AMX)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,amx-tile,amx-int8")
#endif
#define ROWS 16
#define TOGETHER 16
#include "avx512.h"

#define FEW 32 /* rows, up to which VNNI is faster, which takes the weights as they are packed */
#define SUMS 4 /* of groups, that are kept until they are scaled */

/* What tiles are loaded from is written before: GCC's intrinsics do not say what they read. */
#define SETTLE() __asm__ volatile("" ::: "memory")

/* What ldtilecfg reads. */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileShapes;

/* Tiles 0 and 2 hold digits, 1 and 3 weights, 4 and 5 sums. */
static void set_tiles(int32_t group) {
    const int32_t inputs = smaller(group, 64);
    TileShapes shapes = {.palette = 1};
    for (int t = 0; t < 6; t++) shapes.row_bytes[t] = 64, shapes.rows[t] = 16;
    for (int t = 0; t < 4; t += 2) shapes.row_bytes[t] = (uint16_t)inputs, shapes.rows[t + 1] = (uint8_t)(inputs / 4);
    SETTLE();
    _tile_loadconfig(&shapes);
}

static void widen(const Linear *linear, const uint8_t *weights, int32_t inputs, uint8_t *wide) {
    const __m512i low = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8), sign = _mm512_set1_epi8(-128);
    if (linear->bits == 8)
        for (int32_t k = 0; k < inputs * PANEL; k += 64)
            _mm512_store_si512(wide + k, _mm512_xor_si512(_mm512_loadu_si512(weights + k), sign));
    else
        for (int32_t k = 0; k < inputs * PANEL; k += 128) {
            const __m512i both = _mm512_loadu_si512(weights + k / 2);
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            _mm512_store_si512(wide + k, _mm512_sub_epi8(_mm512_and_si512(both, low), eight));
            _mm512_store_si512(wide + k + 64, _mm512_sub_epi8(high, eight));
        }
}

/* A row's sums of a group, times its scales. */
INLINE __m512 scaled(const int bits, const int32_t sums[PANEL], __m512 scale, float factor) {
    const __m512 f = _mm512_set1_ps(factor), sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums));
    return _mm512_mul_ps(sum, bits == 8 ? f : _mm512_mul_ps(f, scale));
}

/* out (16 rows, from `from` to `to`) += the scaled sums of a group. */
INLINE void add_scaled(const int from, const int to, const int bits, const int32_t sums[ROWS][PANEL], __m512 scale,
                       const float *factor, int32_t groups, __m512 out[ROWS]) {
#pragma GCC unroll 16
    for (int m = from; m < to; m++)
        out[m] = _mm512_add_ps(out[m], scaled(bits, sums[m], scale, factor[(size_t)m * groups]));
}

/* Into a tile: the sums of a group's digits, at `from`, by a panel's weights, at `weight`. */
#define LOAD_AND_MULTIPLY(sum, left, right)                  \
    _tile_loadd(left, from, ld);                             \
    _tile_loadd(right, weight, 64);                          \
    _tile_zero(sum);                                         \
    _tile_dpbssd(sum, left, right);                          \
    if (group == 128) {                                      \
        _tile_loadd(left, from + 64, ld);                    \
        _tile_loadd(right, weight + 64 * PANEL, 64);         \
        _tile_dpbssd(sum, left, right);                      \
    }

/* The same of the next step, which is a group of a panel. */
#define MULTIPLY(sum, left, right)                                                        \
    {                                                                                     \
        const digit *from = digits + (size_t)next_group * group * ROWS;                   \
        const uint8_t *weight = weights[next_panel] + (size_t)next_group * group * PANEL; \
        LOAD_AND_MULTIPLY(sum, left, right)                                               \
        if (++next_group == count) next_group = 0, next_panel++;                          \
    }

/* While the vectors scale one group's sums, the next one's are stored and those of the one after it are multiplied. */
#define STEP(mine, other, left, right)                                                               \
    {                                                                                                \
        add_scaled(0, 4, bits, sums[step % SUMS], scale, factor + g, groups, out);                   \
        if (step + 2 < steps) MULTIPLY(mine, left, right)                                            \
        add_scaled(4, 12, bits, sums[step % SUMS], scale, factor + g, groups, out);                  \
        if (step + 1 < steps) _tile_stored(other, sums[(step + 1) % SUMS], sizeof sums[0][0]);       \
        add_scaled(12, 16, bits, sums[step % SUMS], scale, factor + g, groups, out);                 \
    }

/* As `tile`, for weights that were widened. All 16 rows are multiplied, whatever lies there; `rows` of them are kept. */
INLINE void wide_tile_of(const int bits, int rows, int panels, const Linear *const linears[PANELS],
                         const int32_t panel[PANELS], const uint8_t *const weights[PANELS], const Rows *x, int32_t row,
                         int32_t first, int32_t last, float y[][PANELS * PANEL]) {
    const int32_t group = bits == 8 ? GROUP : x->group, ld = row_step(x), groups = x->groups, count = last - first;
    const digit *digits = digits_of(x, row, first);
    const float *factor = x->scale + (size_t)row * groups + first;
    int32_t sums[SUMS][ROWS][PANEL] __attribute__((aligned(64)));
    const int32_t steps = panels * count;
    int32_t next_panel = 0, next_group = 0, step = 0;
    __m512 scale = _mm512_setzero_ps(), out[ROWS];
    SETTLE();
    MULTIPLY(4, 0, 1)
    if (steps > 1) MULTIPLY(5, 2, 3)
    _tile_stored(4, sums[0], sizeof sums[0][0]);
    for (int p = 0; p < panels; p++) {
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; m++)
            out[m] = m < rows ? _mm512_loadu_ps(y[m] + p * PANEL) : _mm512_setzero_ps();
        for (int32_t g = 0; g < count; g++, step++) {
            if (bits == 4) scale = load_scale(linears[p], panel[p], groups, first + g);
            if (step % 2 == 0) STEP(4, 5, 0, 1) else STEP(5, 4, 2, 3)
        }
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; m++)
            if (m < rows) _mm512_storeu_ps(y[m] + p * PANEL, out[m]);
    }
}

static void wide_tile(int rows, int panels, const Linear *const linears[PANELS], const int32_t panel[PANELS],
                      const uint8_t *const weights[PANELS], const Rows *x, int32_t row, int32_t first, int32_t last,
                      float y[][PANELS * PANEL]) {
    if (linears[0]->bits == 8)
        wide_tile_of(8, rows, panels, linears, panel, weights, x, row, first, last, y);
    else
        wide_tile_of(4, rows, panels, linears, panel, weights, x, row, first, last, y);
}

/* A tile's worth of second digits: rows of a group, by a panel. */
typedef struct {
    int16_t group, done, panel, rows;
} Step;

/* Into a tile: the sums of a step. */
#define MULTIPLY_SECONDS(sum, left, right, step)                                                               \
    {                                                                                                          \
        const digit *from = digits_of(&x->second, row + (step).done, first + (step).group);                    \
        const uint8_t *weight = weights[(step).panel] + (size_t)(step).group * group * PANEL;                  \
        LOAD_AND_MULTIPLY(sum, left, right)                                                                    \
    }

/* As `add_seconds`. Groups have few rows with second digits, so that all steps of a block make one row of them. */
INLINE void add_wide_seconds(const int bits, const Linear *const linears[PANELS], const int32_t panel[PANELS],
                             int32_t panels, const uint8_t *const weights[PANELS], const Quantized *x, int32_t row,
                             int32_t first, int32_t last, float y[][PANELS * PANEL]) {
    const int32_t group = bits == 8 ? GROUP : x->second.group, ld = row_step(&x->second), groups = x->second.groups;
    const int32_t *counts = x->count + (size_t)(row / ROW_BLOCK) * groups + first;
    Step steps[INPUTS / 32 * PANELS * (ROW_BLOCK / ROWS)];
    int32_t sums[SUMS][ROWS][PANEL] __attribute__((aligned(64)));
    int32_t count = 0;
    for (int32_t g = 0; g < last - first; g++)
        for (int32_t done = 0; done < counts[g]; done += ROWS)
            for (int32_t p = 0; p < panels; p++)
                steps[count++] = (Step){(int16_t)g, (int16_t)done, (int16_t)p, (int16_t)smaller(counts[g] - done, ROWS)};
    SETTLE();
    if (count > 0) MULTIPLY_SECONDS(4, 0, 1, steps[0])
    if (count > 1) MULTIPLY_SECONDS(5, 2, 3, steps[1])
    if (count > 0) _tile_stored(4, sums[0], sizeof sums[0][0]);
    for (int32_t s = 0; s < count; s++) {
        const Step step = steps[s];
        const size_t place = (size_t)(row + step.done) * groups + first + step.group;
        __m512 scale = bits == 4 ? load_scale(linears[step.panel], panel[step.panel], groups, first + step.group)
                                 : _mm512_setzero_ps();
        if (s % 2 == 0) {
            if (s + 2 < count) MULTIPLY_SECONDS(4, 0, 1, steps[s + 2])
            if (s + 1 < count) _tile_stored(5, sums[(s + 1) % SUMS], sizeof sums[0][0]);
        } else {
            if (s + 2 < count) MULTIPLY_SECONDS(5, 2, 3, steps[s + 2])
            if (s + 1 < count) _tile_stored(4, sums[(s + 1) % SUMS], sizeof sums[0][0]);
        }
        for (int32_t m = 0; m < step.rows; m++) {
            float *to = y[x->having[place + (size_t)m * groups]] + step.panel * PANEL;
            const __m512 more = scaled(bits, sums[s % SUMS][m], scale, x->second.scale[place + (size_t)m * groups]);
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), more));
        }
    }
}

static void wide_seconds(const Linear *const linears[PANELS], const int32_t panel[PANELS], int32_t panels,
                         const uint8_t *const weights[PANELS], const Quantized *x, int32_t row, int32_t first,
                         int32_t last, float y[][PANELS * PANEL]) {
    if (linears[0]->bits == 8)
        add_wide_seconds(8, linears, panel, panels, weights, x, row, first, last, y);
    else
        add_wide_seconds(4, linears, panel, panels, weights, x, row, first, last, y);
}

static void multiply_block(const Linear *const linears[PANELS], const int32_t panel[PANELS], int32_t panels,
                           const Quantized *x, int32_t row, int32_t rows, float y[][PANELS * PANEL]) {
    if (rows <= FEW) {
        multiply_by_tiles(tile, TILE_ROWS, NULL, NULL, linears, panel, panels, x, row, rows, y);
        return;
    }
    set_tiles(x->first.group);
    multiply_by_tiles(wide_tile, ROWS, widen, wide_seconds, linears, panel, panels, x, row, rows, y);
    _tile_release(); /* others in this process have shapes of their own */
}

const Kernels chuan_amx = {"amx", UNIT, OFFSET, linear_space, run_linear, layer_space, run_layer};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
