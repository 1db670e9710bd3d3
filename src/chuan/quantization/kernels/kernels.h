/* The kernels' interface: plain C, no torch. Every structure is mirrored in bindings.py.
 *
 * Letters: T rows (tokens), N outputs, K inputs, D width of a head. A panel is 16 outputs of a weight, packed so that
 * one load brings the next few inputs of all 16. Activations are int8 with one scale for each row and group of inputs;
 * a group with an outlier has second digits, in steps of 1/254 of the first.
 *
 * y[t, n] = scale[n] * sum over groups g of (a[t, g] * (sum over k in g of q[t, k] * w[n, k])
 *                                            + a[t, g] / 254 * (sum over k in g of r[t, k] * w[n, k])) + bias[n]
 *
 * The inner sums are exact integers. The outer one takes INPUTS inputs after the other: their first digits in the order
 * of the groups, then their second ones; each product and each sum is rounded once to float32. So every instruction set
 * gives the same bits, and a row's result never depends on its company.
 */
#ifndef CHUAN_KERNELS_H
#define CHUAN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define PANEL 16
#define GROUP 64 /* inputs that share an activation scale at 8 bits; at 4 bits it is the weight's own group */
#define INPUTS 512 /* summed one after the other; their weights, of 32 outputs, take a third of a first-level cache */
#define PAGE 64  /* tokens of a page of keys or values, as inference/pages.py has it */

typedef struct {
    const uint8_t *panels;       /* or NULL */
    const int8_t *rows;          /* 8 bits: (N, K), the weight as a file has it, in place of panels */
    const float *scale;          /* 8 bits: (N), one an output */
    const uint16_t *group_scale; /* 4 bits: (panels, groups, 16) bfloat16 */
    const float *bias;           /* (N), or NULL */
    int32_t outputs;             /* N; panels, scale, group_scale and bias are padded to whole panels */
    int32_t width;               /* K */
    int32_t inputs;              /* K, padded to whole groups */
    int32_t bits;                /* 8 or 4 */
    int32_t group;               /* GROUP, or 32, 64, 128 at 4 bits */
} Linear;

typedef struct {
    Linear q, k, v, o, gate, up, down;
    const float *input_norm, *post_norm; /* (hidden) */
} Layer;

typedef struct {
    int32_t hidden, ffn, heads, kv_heads, head_dim;
    float eps;
} Shape;

typedef struct {
    int32_t first, rows, past, unused; /* its rows in the batch, and how many tokens are in its pages already */
    const int32_t *pages;              /* page numbers, of past + rows tokens */
} Sequence;

typedef struct {
    int32_t rows, sequences; /* T in all */
    const Sequence *sequence;
    const float *cos, *sin; /* (T, D / 2) */
    uint16_t *keys;         /* this layer's (pages, kv_heads, D / 2, PAGE, 2) bfloat16 */
    uint16_t *values;       /* this layer's (pages, kv_heads, PAGE / 2, D, 2) bfloat16 */
} Batch;

typedef struct {
    const char *name;
    int32_t unit;   /* inputs that lie side by side in a panel */
    int32_t offset; /* what is added to an int8 weight when it is packed */
    size_t (*linear_space)(int32_t rows, int32_t inputs);
    void (*linear)(const Linear *, int32_t rows, const float *x, const float *norm, float eps, float *y, void *space);
    size_t (*layer_space)(const Shape *, int32_t rows);
    void (*layer)(const Shape *, const Layer *, const Batch *, float *x, void *space);
} Kernels;

extern const Kernels chuan_portable;
#if defined(__x86_64__)
extern const Kernels chuan_avx2, chuan_avx512_vnni;
/* Linux gives a process its tiles when asked; older compilers do not know them. */
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAS_AMX
extern const Kernels chuan_amx;
#endif
#endif

#endif
