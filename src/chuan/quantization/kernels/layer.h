/* What surrounds the matrix products: norms, quantized activations, RoPE, attention over pages, a whole decoder layer.
 *
 * Included by each instruction set's file, which defines UNIT, OFFSET, `digit` (how an int8 activation is stored), `vec`,
 * WIDTH, fma_, ROWS, TOGETHER and PANELS, and the function `tile`; where rows lie
 * TOGETHER `multiply_block` too, for it has two kinds of tile. Every row is computed alone and in one order. */
#include "pack.h"

#include <math.h>
#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))
/* A group whose largest value is this many times its mean has an outlier: it gets a second digit. */
#define OUTLIER 10.0f
#define SECOND (1.0f / 254.0f)
#define ATTENTION_TASK 32 /* rows that are attended together: they and a page of keys take about a first-level cache */
#define ROW_BLOCK 256 /* rows whose sums are kept at a time; `having` has a byte for each */

/* Rows of digits, times their scales. */
typedef struct {
    digit *digits;  /* (T / TOGETHER rounded up, groups, TOGETHER, G); see `digits_of` */
    float *scale;   /* (T, groups) */
    int32_t *start; /* (T, groups): what cancels the offset of the weights */
    int32_t group, groups;
    int32_t ld; /* a cache line more than K: rows 4,096 bytes apart would all want the same places of the cache */
} Rows;

/* Quantized rows: x ~ first + second. Only a group with an outlier has second digits, in steps of 1/254 of the first ones.
 * Those of a group stand together, at the top of each ROW_BLOCK rows. */
typedef struct {
    Rows first, second;
    uint8_t *having; /* (T, groups): whether a row has second digits; once gathered, whose they are */
    int32_t *count;  /* (T / ROW_BLOCK rounded up, groups): how many rows have them */
} Quantized;

/* y (M, P * 16) += the groups from `first` to `last` of the sums over groups; scale and bias come later. `weights` are
 * those groups of each panel. */
typedef void tile_function(int rows, int panels, const Linear *const linears[PANELS], const int32_t panel[PANELS],
                           const uint8_t *const weights[PANELS], const Rows *x, int32_t row, int32_t first, int32_t last,
                           float y[][PANELS * PANEL]);

/* `add_seconds` of its own, for weights that were widened. */
typedef void seconds_function(const Linear *const linears[PANELS], const int32_t panel[PANELS], int32_t panels,
                              const uint8_t *const weights[PANELS], const Quantized *x, int32_t row, int32_t first,
                              int32_t last, float y[][PANELS * PANEL]);

/* Weights of some inputs of a panel as signed bytes, in the order in which int8 ones are packed. `wide` may be `weights`. */
typedef void widen_function(const Linear *linear, const uint8_t *weights, int32_t inputs, uint8_t *wide);

static tile_function tile;

/* y (T', P * 16) = the product of rows `row` and on, at most ROW_BLOCK, by some panels. */
static void multiply_block(const Linear *const linears[PANELS], const int32_t panel[PANELS], int32_t panels,
                           const Quantized *x, int32_t row, int32_t rows, float y[][PANELS * PANEL]);

INLINE int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
INLINE int32_t pad(int32_t n, int32_t to) { return (n + to - 1) / to * to; }

/* Takes aligned pieces off a block of memory; with base NULL it counts what is needed. */
typedef struct {
    uint8_t *base;
    size_t used;
} Space;

static void *take(Space *space, size_t size) {
    void *piece = space->base == NULL ? NULL : space->base + space->used;
    space->used += (size + 63) / 64 * 64;
    return piece;
}

/* Whole tiles of rows: one is loaded with whatever lies behind the last row. */
static Rows take_rows(Space *space, int32_t rows, int32_t inputs) {
    const int32_t padded = pad(rows, TOGETHER);
    const size_t groups = (size_t)padded * (inputs / 32);
    Rows x = {.ld = inputs + 64};
    x.digits = take(space, (size_t)padded * x.ld * sizeof(digit));
    x.scale = take(space, groups * sizeof(float));
    x.start = take(space, groups * sizeof(int32_t));
    return x;
}

static Quantized take_quantized(Space *space, int32_t rows, int32_t inputs) {
    Quantized x = {.first = take_rows(space, rows, inputs), .second = take_rows(space, rows, inputs)};
    x.having = take(space, (size_t)rows * (inputs / 32));
    x.count = take(space, (size_t)(pad(rows, ROW_BLOCK) / ROW_BLOCK) * (inputs / 32) * sizeof(int32_t));
    return x;
}

static void set_group(Quantized *x, const Linear *linear) {
    Rows *both[2] = {&x->first, &x->second};
    for (int i = 0; i < 2; i++) {
        both[i]->group = linear->group, both[i]->groups = linear->inputs / linear->group;
    }
}

/* A row's digits of a group. TOGETHER rows, one but where tiles are loaded, have theirs side by side. */
INLINE digit *digits_of(const Rows *x, int32_t row, int32_t group) {
    const size_t above = (size_t)(row / TOGETHER) * TOGETHER * x->ld, inside = (size_t)(row % TOGETHER);
    return x->digits + above + ((size_t)group * TOGETHER + inside) * x->group;
}

/* How far the next row's digits are, where both are TOGETHER. */
INLINE int32_t row_step(const Rows *x) { return TOGETHER == 1 ? x->ld : x->group; }

/* Rounds to the nearest integer, ties to even: 1.5 * 2^23 leaves no room for a fraction. */
INLINE float round_(float x) { return x + 12582912.0f - 12582912.0f; }

/* The digits of `size` values; returns their sum. */
INLINE int32_t write_digits(const int size, const float *values, digit *digits) {
    int32_t total = 0;
    for (int k = 0; k < size; k++) {
        const int32_t value = (int32_t)values[k];
        digits[k] = (digit)value;
        total += value;
    }
    return total;
}

/* One group of a row; `count` of its inputs are real. A value that is not finite makes the scale, and so the result, NaN. */
INLINE void quantize_group(const int size, Quantized *x, int32_t row, int32_t index, const float *values, int32_t count,
                           int32_t offset) {
    float padded[128], scaled[128], sums[16] = {0}, sum = 0, top;
    int32_t largest[16] = {0}, bits = 0;
    if (count < size) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, values, (size_t)count * sizeof(float));
        values = padded;
    }
    for (int k = 0; k < size; k += 16)
        for (int j = 0; j < 16; j++) {
            int32_t magnitude;
            memcpy(&magnitude, values + k + j, sizeof magnitude);
            magnitude &= 0x7fffffff; /* as integers, so that NaN is the largest of all */
            largest[j] = magnitude > largest[j] ? magnitude : largest[j];
            sums[j] += fabsf(values[k + j]);
        }
    for (int j = 0; j < 16; j++) bits = largest[j] > bits ? largest[j] : bits;
    for (int j = 0; j < 16; j++) sum += sums[j];
    memcpy(&top, &bits, sizeof top);
    const size_t place = (size_t)row * x->first.groups + index;
    const int finite = bits < 0x7f800000, some = finite && top > 1e-30f;
    const int outlier = some && top * (float)size > OUTLIER * sum;
    const float inverse = some ? 127.0f / top : 0.0f;
    for (int k = 0; k < size; k++) scaled[k] = some ? round_(values[k] * inverse) : 0.0f;
    x->first.start[place] = -offset * write_digits(size, scaled, digits_of(&x->first, row, index));
    x->first.scale[place] = some ? top / 127.0f : finite ? 0.0f : NAN;
    x->having[place] = (uint8_t)outlier;
    if (!outlier) return;
    for (int k = 0; k < size; k++) scaled[k] = round_((values[k] * inverse - scaled[k]) * 254.0f);
    x->second.start[place] = -offset * write_digits(size, scaled, digits_of(&x->second, row, index));
    x->second.scale[place] = x->first.scale[place] * SECOND;
}

/* A row's norm (Zhang and Sennrich 2019): values over their root mean square, times the weight. */
static void normalize(const float *x, const float *weight, int32_t count, float eps, float *y) {
    float sums[16] = {0}, sum = 0;
    int32_t k = 0;
    for (; k + 16 <= count; k += 16)
        for (int32_t j = 0; j < 16; j++) sums[j] += x[k + j] * x[k + j];
    for (; k < count; k++) sums[k % 16] += x[k] * x[k];
    for (int32_t j = 0; j < 16; j++) sum += sums[j];
    const float scale = 1.0f / sqrtf(sum / (float)count + eps);
    for (k = 0; k < count; k++) y[k] = weight[k] * (x[k] * scale);
}

/* Moves a group's second digits, which each row has where its first ones are, to the top. */
static void gather_seconds(Quantized *x, int32_t rows, int32_t group) {
    Rows *second = &x->second;
    const size_t groups = (size_t)second->groups, size = (size_t)second->group * sizeof(digit);
    for (int32_t first = 0; first < rows; first += ROW_BLOCK) {
        const size_t place = (size_t)first * groups + group;
        int32_t count = 0;
        for (int32_t row = 0; row < smaller(ROW_BLOCK, rows - first); row++) {
            const size_t from = place + (size_t)row * groups, to = place + (size_t)count * groups;
            if (!x->having[from]) continue;
            x->having[to] = (uint8_t)row; /* count <= row: no flag that is still to be read */
            if (to != from) {
                memcpy(digits_of(second, first + count, group), digits_of(second, first + row, group), size);
                second->start[to] = second->start[from], second->scale[to] = second->scale[from];
            }
            count++;
        }
        x->count[(size_t)(first / ROW_BLOCK) * groups + group] = count;
    }
}

/* (T, count) floats -> rows; with `norm` they are normalized first, in `scratch` (T, count). All threads come here. */
static void quantize(Quantized *x, int32_t rows, const float *values, int32_t count, const Linear *for_,
                     const float *norm, float eps, float *scratch) {
    const int32_t offset = for_->bits == 4 ? 8 : OFFSET, groups = x->first.groups, size = x->first.group;
    if (norm != NULL) {
#pragma omp for schedule(static)
        for (int32_t row = 0; row < rows; row++)
            normalize(values + (size_t)row * count, norm, count, eps, scratch + (size_t)row * count);
        values = scratch;
    }
#pragma omp for schedule(static)
    for (int32_t index = 0; index < rows * groups; index++) {
        const int32_t row = index / groups, group = index % groups, first = group * size;
        const int32_t real = smaller(count - first, size);
        const float *from = values + (size_t)row * count + first;
        if (size == 32) quantize_group(32, x, row, group, from, real, offset);
        if (size == 64) quantize_group(64, x, row, group, from, real, offset);
        if (size == 128) quantize_group(128, x, row, group, from, real, offset);
        if (rows == 1) gather_seconds(x, 1, group);
    }
    if (rows == 1) return; /* saves all threads a meeting */
#pragma omp for schedule(static)
    for (int32_t group = 0; group < groups; group++) gather_seconds(x, rows, group);
}

/* How many rows the next tile takes, of `left` and at most `most`: as even a split as possible, because small tiles are
 * slow; but none goes beyond the rows that lie TOGETHER. */
INLINE int32_t next_rows(int32_t left, const int32_t most) {
    if (TOGETHER > 1) return smaller(left, most);
    const int32_t tiles = (left + most - 1) / most;
    return (left + tiles - 1) / tiles;
}

/* Some inputs of a panel that is not packed yet. Not inline: the products around it are the rule, and this is not. */
static __attribute__((noinline)) void pack_block(const Linear *linear, int32_t panel, int32_t begin, int32_t end,
                                                 uint8_t *packed) {
    pack_inputs(UNIT, OFFSET, linear->rows, linear->outputs, linear->width, panel * PANEL, begin, end, packed);
}

/* Of a group of a panel. */
INLINE size_t count_group_bytes(const Linear *linear) {
    return (size_t)linear->group * PANEL * (size_t)linear->bits / 8;
}

/* y (M, P * 16) += the second digits of some groups, for the rows of a ROW_BLOCK that have them; as many at a time as a
 * tile takes. `weights` are those groups of each panel. */
INLINE void add_seconds(tile_function *tile, const int32_t most, const Linear *const linears[PANELS],
                        const int32_t panel[PANELS], int32_t panels, const uint8_t *const weights[PANELS],
                        const Quantized *x, int32_t row, int32_t first, int32_t last, float y[][PANELS * PANEL]) {
    const size_t groups = (size_t)x->second.groups;
    const size_t group_bytes = count_group_bytes(linears[0]);
    for (int32_t group = first; group < last; group++) {
        const int32_t count = x->count[(size_t)(row / ROW_BLOCK) * groups + group];
        const uint8_t *of_group[PANELS];
        for (int32_t p = 0; p < panels; p++) of_group[p] = weights[p] + (size_t)(group - first) * group_bytes;
        for (int32_t done = 0, step; done < count; done += step) {
            const uint8_t *having = x->having + (size_t)(row + done) * groups + group;
            float some[ROWS][PANELS * PANEL] __attribute__((aligned(64)));
            step = next_rows(count - done, most);
            for (int32_t m = 0; m < step; m++) memcpy(some[m], y[having[m * groups]], sizeof some[m]);
            tile(step, panels, linears, panel, of_group, &x->second, row + done, group, group + 1, some);
            for (int32_t m = 0; m < step; m++) memcpy(y[having[m * groups]], some[m], sizeof some[m]);
        }
    }
}

/* The scales of a panel at 8 bits, and its bias. */
INLINE void finish(const Linear *linear, int32_t panel, float *restrict y) {
    const float *restrict scale = linear->scale, *restrict bias = linear->bias;
    const int32_t first = panel * PANEL;
    if (scale != NULL)
        for (int n = 0; n < PANEL; n++) y[n] *= scale[first + n];
    if (bias != NULL)
        for (int n = 0; n < PANEL; n++) y[n] += bias[first + n];
}

/* Fetches, while the tile at row `m` is computed, its share of the next inputs' weights into the second cache: tiles are
 * faster than the memory's answers, and the processor's own prefetch does not see through the copy that is widened. */
INLINE void fetch_part(const uint8_t *const ahead[PANELS], int32_t panels, size_t bytes, int32_t m, int32_t rows) {
    const size_t from = bytes * (size_t)m / (size_t)rows, to = bytes * (size_t)smaller(m + ROWS, rows) / (size_t)rows;
    for (int32_t p = 0; p < panels && ahead[p] != NULL; p++)
        for (size_t i = from / 64 * 64; i < to; i += 64) __builtin_prefetch(ahead[p] + i, 0, 2);
}

/* `multiply_block` by tiles of one kind, of at most `most` rows: for weights as they are packed or, with `widen` and
 * `wide_seconds`, as signed bytes. A few inputs at a time, so that what is read of the panels stays in the first cache
 * while all rows pass by: their first digits, then the second ones. */
INLINE void multiply_by_tiles(tile_function *tile, const int32_t most, widen_function *widen,
                              seconds_function *wide_seconds, const Linear *const linears[PANELS],
                              const int32_t panel[PANELS], int32_t panels, const Quantized *x, int32_t row,
                              int32_t rows, float y[][PANELS * PANEL]) {
    const int32_t groups = x->first.groups, block = INPUTS / x->first.group;
    uint8_t packed[PANELS][INPUTS * PANEL] __attribute__((aligned(64))); /* of weights that are not packed so yet */
    memset(y, 0, (size_t)rows * PANELS * PANEL * sizeof(float));
    for (int32_t first = 0; first < groups; first += block) {
        const int32_t last = smaller(first + block, groups);
        const uint8_t *weights[PANELS], *ahead[PANELS];
        size_t bytes = 0;
        for (int32_t p = 0; p < panels; p++) {
            const Linear *linear = linears[p];
            const size_t group_bytes = count_group_bytes(linear);
            weights[p] = packed[p];
            if (linear->rows != NULL)
                pack_block(linear, panel[p], first * linear->group, last * linear->group, packed[p]);
            else
                weights[p] = linear->panels + ((size_t)panel[p] * groups + first) * group_bytes;
            if (widen == NULL) continue;
            bytes = (size_t)(last - first) * group_bytes, ahead[p] = linear->panels == NULL ? NULL : weights[p] + bytes;
            widen(linear, weights[p], (last - first) * linear->group, packed[p]);
            weights[p] = packed[p];
        }
        for (int32_t m = 0, step; m < rows; m += step) {
            step = next_rows(rows - m, most);
            if (widen != NULL) fetch_part(ahead, panels, bytes, m, rows);
            tile(step, panels, linears, panel, weights, &x->first, row + m, first, last, y + m);
        }
        if (wide_seconds != NULL)
            wide_seconds(linears, panel, panels, weights, x, row, first, last, y);
        else
            add_seconds(tile, most, linears, panel, panels, weights, x, row, first, last, y);
    }
    for (int32_t p = 0; p < panels; p++)
        for (int32_t m = 0; m < rows; m++) finish(linears[p], panel[p], y[m] + p * PANEL);
}

#if TOGETHER == 1 /* one kind of tile */
static void multiply_block(const Linear *const linears[PANELS], const int32_t panel[PANELS], int32_t panels,
                           const Quantized *x, int32_t row, int32_t rows, float y[][PANELS * PANEL]) {
    multiply_by_tiles(tile, ROWS, NULL, NULL, linears, panel, panels, x, row, rows, y);
}
#endif

/* y (T, ld) = or += the product. All threads come here; they do not wait for each other at its end. */
static void multiply(const Linear *linear, const Quantized *x, int32_t rows, float *y, int32_t ld, int add) {
    const int32_t panels = pad(linear->outputs, PANEL) / PANEL;
#pragma omp for schedule(static) nowait
    for (int32_t block = 0; block < (panels + PANELS - 1) / PANELS; block++) {
        const Linear *linears[PANELS];
        int32_t places[PANELS], first = block * PANELS, count = smaller(PANELS, panels - first);
        for (int32_t p = 0; p < PANELS; p++) linears[p] = linear, places[p] = first + (p < count ? p : 0);
        const int32_t columns = smaller(count * PANEL, linear->outputs - first * PANEL);
        for (int32_t row = 0; row < rows; row += ROW_BLOCK) {
            const int32_t step = smaller(ROW_BLOCK, rows - row);
            float out[ROW_BLOCK][PANELS * PANEL];
            multiply_block(linears, places, count, x, row, step, out);
            for (int32_t m = 0; m < step; m++) {
                float *to = y + (size_t)(row + m) * ld + first * PANEL;
                if (add)
                    for (int32_t n = 0; n < columns; n++) to[n] += out[m][n];
                else
                    for (int32_t n = 0; n < columns; n++) to[n] = out[m][n];
            }
        }
    }
}

/* e^x in float32, to 2 units in the last place; x at most 88. */
INLINE float exponential(float x) {
    const float magic = 12582912.0f;
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504f + magic, n = shifted - magic;
    const float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691e-4f;
    p = p * f + 1.3981999e-3f, p = p * f + 8.3334519e-3f, p = p * f + 4.1665796e-2f;
    p = p * f + 1.6666665e-1f, p = p * f + 5.0000001e-1f, p = p * f * f + f + 1.0f;
    uint32_t bits, exponent;
    memcpy(&exponent, &shifted, sizeof exponent);
    memcpy(&bits, &p, sizeof bits);
    bits += exponent << 23;
    memcpy(&p, &bits, sizeof p);
    return p;
}

/* h (T, ffn) = silu(gate) * up (Shazeer 2020, equation 6); a panel of each in a tile. */
static void multiply_gated(const Linear *gate, const Linear *up, const Quantized *x, int32_t rows, float *h) {
    const Linear *linears[PANELS] = {gate, up};
#pragma omp for schedule(static) nowait
    for (int32_t panel = 0; panel < pad(gate->outputs, PANEL) / PANEL; panel++) {
        const int32_t places[PANELS] = {panel, panel}, columns = smaller(PANEL, gate->outputs - panel * PANEL);
        for (int32_t row = 0; row < rows; row += ROW_BLOCK) {
            const int32_t step = smaller(ROW_BLOCK, rows - row);
            float out[ROW_BLOCK][PANELS * PANEL];
            multiply_block(linears, places, 2, x, row, step, out);
            for (int32_t m = 0; m < step; m++) {
                float *to = h + (size_t)(row + m) * gate->outputs + panel * PANEL;
                float product[PANEL];
                for (int32_t n = 0; n < PANEL; n++) {
                    const float g = out[m][n], away = g > -80.0f ? g : -80.0f;
                    product[n] = g / (1.0f + exponential(-away < 88.0f ? -away : 88.0f)) * out[m][PANEL + n];
                }
                memcpy(to, product, (size_t)columns * sizeof(float));
            }
        }
    }
}

INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0; /* NaN */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Rotates a head by its position's angles (Su et al. 2021), halves apart as Hugging Face has them. */
INLINE void rotate(float *x, const float *cos, const float *sin, int32_t half, float scale) {
    for (int32_t d = 0; d < half; d++) {
        const float left = x[d], right = x[half + d];
        x[d] = (left * cos[d] - right * sin[d]) * scale;
        x[half + d] = (right * cos[d] + left * sin[d]) * scale;
    }
}

/* Rotates queries (which also take attention's 1 / sqrt(D)) and keys, and stores keys and values in their pages. */
static void place(const Shape *shape, const Batch *batch, float *queries, float *keys, float *values) {
    const int32_t size = shape->head_dim, half = size / 2, kv = shape->kv_heads;
    for (int32_t index = 0; index < batch->sequences; index++) {
        const Sequence *sequence = batch->sequence + index;
#pragma omp for schedule(static) nowait
        for (int32_t task = 0; task < sequence->rows * kv; task++) {
            const int32_t row = task / kv, head = task % kv, position = sequence->past + row;
            const size_t t = (size_t)(sequence->first + row);
            const float *cos = batch->cos + t * half, *sin = batch->sin + t * half;
            const int32_t shared = shape->heads / kv, slot = position % PAGE;
            for (int32_t h = head * shared; h < (head + 1) * shared; h++)
                rotate(queries + (t * shape->heads + h) * size, cos, sin, half, 1.0f / sqrtf((float)size));
            float *key = keys + (t * kv + head) * size;
            const float *value = values + (t * kv + head) * size;
            rotate(key, cos, sin, half, 1.0f);
            const size_t page = ((size_t)sequence->pages[position / PAGE] * kv + head) * PAGE * size;
            uint16_t *to_keys = batch->keys + page, *to_values = batch->values + page;
            for (int32_t d = 0; d < half; d++) {
                to_keys[(d * PAGE + slot) * 2] = to_bfloat16(key[2 * d]);
                to_keys[(d * PAGE + slot) * 2 + 1] = to_bfloat16(key[2 * d + 1]);
            }
            for (int32_t d = 0; d < size; d++)
                to_values[(slot / 2 * size + d) * 2 + slot % 2] = to_bfloat16(value[d]);
            if (row + 1 < sequence->rows) continue;
            /* What a page's last owner left behind the last token is multiplied by zero, and may not be finite. */
            for (int32_t next = slot + 1; next < pad(slot + 1, 16); next++)
                for (int32_t d = 0; d < size; d++) to_values[(next / 2 * size + d) * 2 + next % 2] = 0;
        }
    }
#pragma omp barrier
}

INLINE vec load(const float *from) {
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* Neighbouring pairs of bfloat16 as two vectors: the first of each pair, and the second. */
INLINE void load_pairs(const uint16_t *from, vec *low, vec *high) {
    bits_vec u;
    memcpy(&u, from, sizeof u);
    *low = (vec)(u << 16);
    *high = (vec)(u & 0xffff0000u);
}

/* to (R, columns of `block` vectors) += from (R, 2 * pairs) by pairs of rows that lie side by side. */
INLINE void add_product(const int rows, const int block, const float *from, int32_t from_ld, const uint16_t *pairs,
                        int32_t pairs_ld, int32_t count, float *to, int32_t to_ld) {
    vec sums[ATTENTION_ROWS][ATTENTION_BLOCK];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < block; j++) sums[r][j] = load(to + r * to_ld + j * WIDTH);
    for (int32_t i = 0; i < count; i++)
        for (int j = 0; j < block; j++) {
            vec low, high;
            load_pairs(pairs + (size_t)i * pairs_ld + j * WIDTH * 2, &low, &high);
            for (int r = 0; r < rows; r++) {
                const float a = from[r * from_ld + 2 * i], b = from[r * from_ld + 2 * i + 1];
                sums[r][j] = fma_(splat(a), low, sums[r][j]);
                sums[r][j] = fma_(splat(b), high, sums[r][j]);
            }
        }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < block; j++) memcpy(to + r * to_ld + j * WIDTH, &sums[r][j], sizeof(vec));
}

INLINE void add_products(const int rows, const float *from, int32_t from_ld, const uint16_t *pairs, int32_t pairs_ld,
                         int32_t count, float *to, int32_t to_ld, int32_t columns) {
    int32_t done = 0;
    for (; done + ATTENTION_BLOCK * WIDTH <= columns; done += ATTENTION_BLOCK * WIDTH)
        add_product(rows, ATTENTION_BLOCK, from, from_ld, pairs + done * 2, pairs_ld, count, to + done, to_ld);
    for (; done < columns; done += WIDTH)
        add_product(rows, 1, from, from_ld, pairs + done * 2, pairs_ld, count, to + done, to_ld);
}

static void add_products_of(int rows, const float *from, int32_t from_ld, const uint16_t *pairs, int32_t pairs_ld,
                            int32_t count, float *to, int32_t to_ld, int32_t columns) {
    switch (rows) {
#if ATTENTION_ROWS > 2
        case 4: add_products(4, from, from_ld, pairs, pairs_ld, count, to, to_ld, columns); break;
        case 3: add_products(3, from, from_ld, pairs, pairs_ld, count, to, to_ld, columns); break;
#endif
        case 2: add_products(2, from, from_ld, pairs, pairs_ld, count, to, to_ld, columns); break;
        default: add_products(1, from, from_ld, pairs, pairs_ld, count, to, to_ld, columns);
    }
}

/* One page for a tile of rows: softmax so far (Milakov and Gimelshein 2018), and what it means for the sums. */
static void soften(float scores[PAGE], int32_t valid, int32_t columns, float *top, float *total, float *out,
                   int32_t size) {
    if (valid <= 0) {
        memset(scores, 0, (size_t)columns * sizeof(float));
        return;
    }
    float largest = *top, tops[16], sums[16] = {0};
    for (int32_t i = valid; i < columns; i++) scores[i] = -INFINITY;
    for (int32_t j = 0; j < 16; j++) tops[j] = largest;
    for (int32_t i = 0; i < columns; i += 16)
        for (int32_t j = 0; j < 16; j++) tops[j] = scores[i + j] > tops[j] ? scores[i + j] : tops[j];
    for (int32_t j = 0; j < 16; j++) largest = tops[j] > largest ? tops[j] : largest;
    for (int32_t i = 0; i < columns; i++) scores[i] = exponential(scores[i] - largest);
    for (int32_t i = valid; i < columns; i++) scores[i] = 0;
    for (int32_t i = 0; i < columns; i += 16)
        for (int32_t j = 0; j < 16; j++) sums[j] += scores[i + j];
    if (largest != *top) {
        const float fade = *total > 0 ? exponential(*top - largest) : 0.0f;
        *total *= fade, *top = largest;
        for (int32_t d = 0; d < size; d++) out[d] *= fade;
    }
    float sum = 0;
    for (int32_t j = 0; j < 16; j++) sum += sums[j];
    *total += sum;
}

/* Rows of one sequence and key head that are attended together, a (token, query head) pair each, and how far they are. */
typedef struct {
    float queries[ATTENTION_TASK * MAX_HEAD], sums[ATTENTION_TASK * MAX_HEAD];
    float top[ATTENTION_TASK], total[ATTENTION_TASK];
    size_t places[ATTENTION_TASK];
    int32_t seen[ATTENTION_TASK]; /* tokens before each, and itself */
} Attention;

/* One page for `count` rows of the task, which a tile takes; the last of them sees the most. */
static void attend_page(const Shape *shape, const Batch *batch, size_t page, int32_t start, int32_t row, int32_t count,
                        Attention *task) {
    const int32_t size = shape->head_dim, columns = pad(smaller(task->seen[row + count - 1] - start, PAGE), 16);
    float *queries = task->queries + row * size, *sums = task->sums + row * size;
    float scores[ATTENTION_ROWS][PAGE];
    memset(scores, 0, sizeof scores);
    add_products_of(count, queries, size, batch->keys + page, PAGE * 2, size / 2, scores[0], PAGE, columns);
    for (int32_t r = 0; r < count; r++) {
        const int32_t valid = smaller(task->seen[row + r] - start, columns);
        soften(scores[r], valid, columns, task->top + row + r, task->total + row + r, sums + r * size, size);
    }
    add_products_of(count, scores[0], PAGE, batch->values + page, size * 2, columns / 2, sums, size, size);
}

/* Softmax(Q K^T) V. A page is brought into the first cache once for all `count` rows. */
static void attend_rows(const Shape *shape, const Batch *batch, const Sequence *sequence, int32_t head, int32_t first,
                        int32_t count, const float *queries, float *out) {
    const int32_t size = shape->head_dim, kv = shape->kv_heads, shared = shape->heads / kv;
    Attention task;
    for (int32_t r = 0; r < count; r++) {
        const int32_t row = (first + r) / shared, h = head * shared + (first + r) % shared;
        task.places[r] = ((size_t)(sequence->first + row) * shape->heads + h) * size;
        task.seen[r] = sequence->past + row + 1;
        task.top[r] = -INFINITY, task.total[r] = 0;
        memcpy(task.queries + r * size, queries + task.places[r], (size_t)size * sizeof(float));
    }
    memset(task.sums, 0, (size_t)count * size * sizeof(float));
    for (int32_t start = 0; start < task.seen[count - 1]; start += PAGE) {
        const size_t page = ((size_t)sequence->pages[start / PAGE] * kv + head) * PAGE * size;
        for (int32_t row = 0; row < count; row += ATTENTION_ROWS) {
            const int32_t rows = smaller(ATTENTION_ROWS, count - row);
            if (task.seen[row + rows - 1] > start) attend_page(shape, batch, page, start, row, rows, &task);
        }
    }
    for (int32_t r = 0; r < count; r++)
        for (int32_t d = 0; d < size; d++) out[task.places[r] + d] = task.sums[r * size + d] / task.total[r];
}

/* Attention of every new token. All threads come here. */
static void attend(const Shape *shape, const Batch *batch, const float *queries, float *out) {
    const int32_t kv = shape->kv_heads, shared = shape->heads / kv;
    for (int32_t index = 0; index < batch->sequences; index++) {
        const Sequence *sequence = batch->sequence + index;
        const int32_t rows = sequence->rows * shared, tasks = (rows + ATTENTION_TASK - 1) / ATTENTION_TASK;
#pragma omp for schedule(dynamic) nowait
        for (int32_t task = 0; task < tasks * kv; task++) {
            const int32_t first = task / kv * ATTENTION_TASK, count = smaller(ATTENTION_TASK, rows - first);
            attend_rows(shape, batch, sequence, task % kv, first, count, queries, out);
        }
    }
#pragma omp barrier
}

/* Everything that a layer needs beside its weights. */
typedef struct {
    Quantized hidden, mixed, gated;
    float *queries, *keys, *values, *attended, *product, *scratch;
    size_t used;
} LayerSpace;

static LayerSpace share_out(const Shape *shape, int32_t rows, void *base) {
    Space space = {.base = base};
    LayerSpace s;
    const size_t queries = (size_t)rows * shape->heads * shape->head_dim, t = (size_t)rows;
    s.hidden = take_quantized(&space, rows, pad(shape->hidden, 128));
    s.mixed = take_quantized(&space, rows, pad(shape->heads * shape->head_dim, 128));
    s.gated = take_quantized(&space, rows, pad(shape->ffn, 128));
    s.queries = take(&space, queries * sizeof(float));
    s.keys = take(&space, t * shape->kv_heads * shape->head_dim * sizeof(float));
    s.values = take(&space, t * shape->kv_heads * shape->head_dim * sizeof(float));
    s.attended = take(&space, queries * sizeof(float));
    s.product = take(&space, t * shape->ffn * sizeof(float));
    s.scratch = take(&space, t * shape->hidden * sizeof(float));
    s.used = space.used;
    return s;
}

static size_t layer_space(const Shape *shape, int32_t rows) { return share_out(shape, rows, NULL).used; }

/* x (T, hidden) float32, in place: x += attention(norm(x)); x += feed_forward(norm(x)). */
static void run_layer(const Shape *shape, const Layer *layer, const Batch *batch, float *x, void *space) {
    LayerSpace s = share_out(shape, batch->rows, space);
    const int32_t rows = batch->rows, hidden = shape->hidden, mixed = shape->heads * shape->head_dim;
    set_group(&s.hidden, &layer->q), set_group(&s.mixed, &layer->o), set_group(&s.gated, &layer->down);
#pragma omp parallel
    {
        Quantized in = s.hidden, attended = s.mixed, gated = s.gated;
        quantize(&in, rows, x, hidden, &layer->q, layer->input_norm, shape->eps, s.scratch);
        multiply(&layer->q, &in, rows, s.queries, layer->q.outputs, 0);
        multiply(&layer->k, &in, rows, s.keys, layer->k.outputs, 0);
        multiply(&layer->v, &in, rows, s.values, layer->v.outputs, 0);
#pragma omp barrier
        place(shape, batch, s.queries, s.keys, s.values);
        attend(shape, batch, s.queries, s.attended);
        quantize(&attended, rows, s.attended, mixed, &layer->o, NULL, 0, NULL);
        multiply(&layer->o, &attended, rows, x, hidden, 1);
#pragma omp barrier
        set_group(&in, &layer->gate);
        quantize(&in, rows, x, hidden, &layer->gate, layer->post_norm, shape->eps, s.scratch);
        multiply_gated(&layer->gate, &layer->up, &in, rows, s.product);
#pragma omp barrier
        quantize(&gated, rows, s.product, shape->ffn, &layer->down, NULL, 0, NULL);
        multiply(&layer->down, &gated, rows, x, hidden, 1);
    }
}

static size_t linear_space(int32_t rows, int32_t inputs) {
    Space space = {0};
    take_quantized(&space, rows, inputs);
    take(&space, (size_t)rows * inputs * sizeof(float));
    return space.used;
}

/* y (T, N) = linear(x (T, K)), or of norm(x). */
static void run_linear(const Linear *linear, int32_t rows, const float *x, const float *norm, float eps, float *y,
                       void *base) {
    Space space = {.base = base};
    const Quantized all = take_quantized(&space, rows, linear->inputs);
    float *scratch = take(&space, (size_t)rows * linear->inputs * sizeof(float));
#pragma omp parallel
    {
        Quantized in = all;
        set_group(&in, linear);
        quantize(&in, rows, x, linear->width, linear, norm, eps, scratch);
        multiply(linear, &in, rows, y, linear->outputs, 0);
    }
}
