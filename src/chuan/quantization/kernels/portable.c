/* Plain C, for every processor: what the compiler makes of it. The reference of the others, and their spare. */
#include "kernels.h"

#define UNIT 2
#define OFFSET 0
#define ROWS 4
#define PANELS 2
#define TOGETHER 1
#define ATTENTION_ROWS 2
#define ATTENTION_BLOCK 4
#define MAX_HEAD 256
#define WIDTH 4
typedef int16_t digit;
typedef float vec __attribute__((vector_size(16)));
typedef uint32_t bits_vec __attribute__((vector_size(16)));
#define splat(x) ((vec){(x), (x), (x), (x)})
#define fma_(a, b, c) ((a) * (b) + (c))

#include "layer.h"

static void tile(int rows, int panels, const Linear *const linears[PANELS], const int32_t panel[PANELS],
                 const uint8_t *const weights[PANELS], const Rows *x, int32_t row, int32_t first, int32_t last,
                 float y[][PANELS * PANEL]) {
    for (int index = 0; index < rows * panels; index++) {
        const int m = index / panels, p = index % panels;
        const Linear *linear = linears[p];
        const int32_t group = x->group, groups = x->groups, low = linear->bits == 4;
        const size_t at = (size_t)(row + m) * groups, group_bytes = (size_t)group * PANEL * linear->bits / 8;
        const uint8_t *weight = weights[p];
        float *out = y[m] + p * PANEL;
        for (int32_t g = first; g < last; g++, weight += group_bytes) {
            const digit *digits = digits_of(x, row + m, g);
            const float a = x->scale[at + g];
            int32_t sums[PANEL];
            for (int n = 0; n < PANEL; n++) sums[n] = x->start[at + g];
            for (int32_t k = 0; k < group; k++) {
                const uint8_t *from = weight + (low ? k / 4 * 32 + k % 2 : k / 2 * 32 + k % 2);
                const int shift = low && k % 4 >= 2 ? 4 : 0, value = digits[k];
                for (int n = 0; n < PANEL; n++)
                    sums[n] += value * (low ? from[2 * n] >> shift & 15 : (int8_t)from[2 * n]);
            }
            for (int n = 0; n < PANEL; n++) {
                float factor = a;
                if (low) {
                    const uint32_t bits = (uint32_t)linear->group_scale[((size_t)panel[p] * groups + g) * PANEL + n] << 16;
                    memcpy(&factor, &bits, sizeof factor);
                    factor *= a;
                }
                out[n] += (float)sums[n] * factor;
            }
        }
    }
}

const Kernels chuan_portable = {"portable", UNIT, OFFSET, linear_space, run_linear, layer_space, run_layer};
