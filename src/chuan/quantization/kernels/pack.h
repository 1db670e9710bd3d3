/* How weights are packed: a whole one at once or, at 8 bits, a few inputs of one that is not packed yet. */
#ifndef CHUAN_PACK_H
#define CHUAN_PACK_H

#include "kernels.h"

#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>

/* Sixteen inputs of four rows, where four lie side by side in a panel: a square of 4 x 4 is transposed. */
static inline __attribute__((always_inline)) void pack_square4(const int8_t *from, int32_t width, uint32_t added,
                                                               uint8_t *out) {
    const __m128i offset = _mm_set1_epi32((int)added);
    __m128i row[4];
    for (int i = 0; i < 4; i++)
        row[i] = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(from + (size_t)i * width)), offset);
    const __m128i low0 = _mm_unpacklo_epi32(row[0], row[1]), low1 = _mm_unpacklo_epi32(row[2], row[3]);
    const __m128i high0 = _mm_unpackhi_epi32(row[0], row[1]), high1 = _mm_unpackhi_epi32(row[2], row[3]);
    _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi64(low0, low1));
    _mm_storeu_si128((__m128i *)(out + 64), _mm_unpackhi_epi64(low0, low1));
    _mm_storeu_si128((__m128i *)(out + 128), _mm_unpacklo_epi64(high0, high1));
    _mm_storeu_si128((__m128i *)(out + 192), _mm_unpackhi_epi64(high0, high1));
}

/* Sixteen inputs of eight rows, where two lie side by side: a square of 8 x 8. */
static inline __attribute__((always_inline)) void pack_square2(const int8_t *from, int32_t width, uint32_t added,
                                                               uint8_t *out) {
    const __m128i offset = _mm_set1_epi32((int)added);
    __m128i row[8], two[8], four[8]; /* of one row each, of two, of four */
    for (int i = 0; i < 8; i++)
        row[i] = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(from + (size_t)i * width)), offset);
    for (int i = 0; i < 4; i++) {
        two[i] = _mm_unpacklo_epi16(row[2 * i], row[2 * i + 1]);
        two[i + 4] = _mm_unpackhi_epi16(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 2) {
        four[i] = _mm_unpacklo_epi32(two[i], two[i + 1]);
        four[i + 1] = _mm_unpackhi_epi32(two[i], two[i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        const __m128i first = four[i / 2 * 4 + i % 2], second = four[i / 2 * 4 + 2 + i % 2];
        _mm_storeu_si128((__m128i *)(out + i * 64), _mm_unpacklo_epi64(first, second));
        _mm_storeu_si128((__m128i *)(out + i * 64 + 32), _mm_unpackhi_epi64(first, second));
    }
}
#endif

/* Inputs from `begin` to `whole` of a panel, a few lines of each row at a time: what is read and written stays in the
 * first cache. */
static inline __attribute__((always_inline)) void pack_whole(const int32_t unit, int32_t offset, const int8_t *from,
                                                             int32_t width, int32_t begin, int32_t whole,
                                                             uint8_t *out) {
    const uint32_t added = (uint32_t)offset * 0x01010101u; /* 128 or 0 in each byte */
    int32_t start = begin;
#if defined(__SSE2__)
    for (; start + 64 <= whole; start += 64) /* a line of each row */
        for (int32_t n = 0; n < PANEL; n += 16 / unit)
            for (int32_t k = start; k < start + 64; k += 16) {
                const int8_t *square = from + (size_t)n * width + k;
                uint8_t *to = out + (size_t)(k - begin) * PANEL + n * unit;
                if (unit == 4) pack_square4(square, width, added, to);
                if (unit == 2) pack_square2(square, width, added, to);
            }
#endif
    for (; start < whole; start += 256) {
        const int32_t end = start + 256 < whole ? start + 256 : whole;
        for (int32_t n = 0; n < PANEL; n++)
            for (int32_t k = start; k < end; k += unit) {
                uint32_t bytes = 0;
                memcpy(&bytes, from + (size_t)n * width + k, (size_t)unit);
                bytes ^= added;
                memcpy(out + (size_t)(k - begin) * PANEL + n * unit, &bytes, (size_t)unit);
            }
    }
}

/* weight (rows, width) -> its inputs from `begin` to `end`, whole groups, of the panel that begins with output `first`:
 * ((end - begin) / unit, 16, unit); padding stands for weights of zero. */
static inline __attribute__((always_inline)) void pack_inputs(const int32_t unit, int32_t offset, const int8_t *weight,
                                                              int32_t rows, int32_t width, int32_t first,
                                                              int32_t begin, int32_t end, uint8_t *out) {
    const int32_t real = end < width / unit * unit ? end : width / unit * unit;
    const int32_t whole = rows - first >= PANEL && real > begin ? real : begin;
    pack_whole(unit, offset, weight + (size_t)first * width, width, begin, whole, out);
    out += (size_t)(whole - begin) * PANEL;
    for (int32_t k = whole; k < end; k += unit)
        for (int32_t n = first; n < first + PANEL; n++)
            for (int32_t j = k; j < k + unit; j++) {
                const int value = n < rows && j < width ? weight[(size_t)n * width + j] : 0;
                *out++ = (uint8_t)(value + offset);
            }
}

/* Four nibbles, a byte each. */
static inline uint32_t spread(uint32_t nibbles) {
    nibbles = (nibbles | nibbles << 8) & 0x00ff00ffu;
    return (nibbles | nibbles << 4) & 0x0f0f0f0fu;
}

/* weight (rows, words) of eight nibbles -> the panel that begins with output `first`: (words, 4 / unit, 16, unit) bytes. */
static inline __attribute__((always_inline)) void pack_nibbles(const int32_t unit, const uint32_t *weight, int32_t rows,
                                                               int32_t words, int32_t first, uint8_t *out) {
    for (int32_t word = 0; word < words; word++, out += 4 * PANEL)
        for (int32_t n = 0; n < PANEL; n++) {
            const uint32_t eight = first + n < rows ? weight[(size_t)(first + n) * words + word] : 0x88888888u;
            uint32_t low = eight & 0xffff, high = eight >> 16; /* of each byte's halves, where four lie side by side */
            if (unit == 2) low = (eight & 0xff) | (eight >> 8 & 0xff00), high = (eight >> 8 & 0xff) | (high & 0xff00);
            const uint32_t bytes = spread(low) | spread(high) << 4;
            for (int32_t i = 0; i < 4 / unit; i++)
                memcpy(out + (i * PANEL + n) * unit, (const uint8_t *)&bytes + i * unit, (size_t)unit);
        }
}

#endif
