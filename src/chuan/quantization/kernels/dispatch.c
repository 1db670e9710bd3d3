/* Which kernels this processor runs, and packing for them. Everything that Python calls is here. */
#include "pack.h"
#if defined(HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* Sizes of the structures that cross over, for bindings.py to compare with its own. */
EXPORT extern const int32_t chuan_sizes[6];
const int32_t chuan_sizes[6] = {sizeof(Linear), sizeof(Layer), sizeof(Shape), sizeof(Sequence), sizeof(Batch), sizeof(Kernels)};

#if defined(HAS_AMX)
/* Whether the processor multiplies tiles of bytes and the system lets this process: their state is large (8 KB a thread), and Linux gives it to who asks by arch_prctl(ARCH_REQ_XCOMP_PERM,
 * XFEATURE_XTILEDATA). */
static int ask_for_tiles(void) {
    unsigned a, b, c, d;
    const unsigned wanted = 1u << 24 | 1u << 25; /* AMX-TILE, AMX-INT8 */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & wanted) != wanted) return 0;
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#endif

/* The fastest kernels that this processor runs; `wanted` NULL, or the name of the ones to take. NULL if there are none. */
EXPORT const Kernels *chuan_choose(const char *wanted) {
    const Kernels *found[4];
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
#if defined(HAS_AMX)
        if ((wanted == NULL || strcmp(wanted, chuan_amx.name) == 0) && ask_for_tiles()) found[count++] = &chuan_amx;
#endif
        found[count++] = &chuan_avx512_vnni;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &chuan_avx2;
#endif
    found[count++] = &chuan_portable;
    for (int i = 0; i < count; i++)
        if (wanted == NULL || strcmp(found[i]->name, wanted) == 0) return found[i];
    return NULL;
}

/* int8 (rows, width) -> panels (outputs / 16, inputs / unit, 16, unit); padding stands for weights of zero. */
EXPORT void chuan_pack8(const Kernels *kernels, const int8_t *weight, int32_t rows, int32_t width, int32_t inputs,
                        uint8_t *panels) {
    const int32_t unit = kernels->unit, outputs = (rows + PANEL - 1) / PANEL * PANEL;
#pragma omp parallel for schedule(static)
    for (int32_t first = 0; first < outputs; first += PANEL) {
        uint8_t *out = panels + (size_t)first * inputs;
        if (unit == 4) pack_inputs(4, kernels->offset, weight, rows, width, first, 0, inputs, out);
        if (unit == 2) pack_inputs(2, kernels->offset, weight, rows, width, first, 0, inputs, out);
    }
}

/* The inverse of chuan_pack8, for some rows. */
EXPORT void chuan_unpack8(const Kernels *kernels, const uint8_t *panels, int32_t first, int32_t rows, int32_t width,
                          int32_t inputs, int8_t *weight) {
    const int32_t unit = kernels->unit;
#pragma omp parallel for schedule(static)
    for (int32_t n = first; n < first + rows; n++)
        for (int32_t k = 0; k < width; k++) {
            const size_t panel = (size_t)(n / PANEL) * PANEL * inputs;
            const size_t place = (size_t)(k / unit) * PANEL * unit + (size_t)(n % PANEL) * unit + k % unit;
            weight[(size_t)(n - first) * width + k] = (int8_t)(panels[panel + place] - kernels->offset);
        }
}

/* Nibbles (rows, width / 8) int32, lowest bits first, 8 standing for zero -> panels (outputs / 16, width / 2 / unit, 16,
 * unit): a byte holds an input in its low half and the one `unit` further in its high half. */
EXPORT void chuan_pack4(const Kernels *kernels, const uint32_t *weight, int32_t rows, int32_t width, uint8_t *panels) {
    const int32_t outputs = (rows + PANEL - 1) / PANEL * PANEL;
#pragma omp parallel for schedule(static)
    for (int32_t first = 0; first < outputs; first += PANEL) {
        uint8_t *out = panels + (size_t)first * (width / 2);
        if (kernels->unit == 4) pack_nibbles(4, weight, rows, width / 8, first, out);
        if (kernels->unit == 2) pack_nibbles(2, weight, rows, width / 8, first, out);
    }
}

/* The inverse of chuan_pack4, for some rows. */
EXPORT void chuan_unpack4(const Kernels *kernels, const uint8_t *panels, int32_t first, int32_t rows, int32_t width,
                          uint32_t *weight) {
    const int32_t unit = kernels->unit, words = width / 8;
#pragma omp parallel for schedule(static)
    for (int32_t n = first; n < first + rows; n++) {
        const uint8_t *panel = panels + (size_t)(n / PANEL) * PANEL * (width / 2) + (size_t)(n % PANEL) * unit;
        for (int32_t word = 0; word < words; word++) {
            uint32_t packed = 0;
            for (int32_t i = 0; i < 8; i++) {
                const int32_t k = word * 8 + i, block = k / (2 * unit), inside = k % (2 * unit);
                const uint8_t byte = panel[(size_t)block * PANEL * unit + inside % unit];
                packed |= (uint32_t)(inside < unit ? byte & 15 : byte >> 4) << (i * 4);
            }
            weight[(size_t)(n - first) * words + word] = packed;
        }
    }
}
