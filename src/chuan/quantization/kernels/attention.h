/* Attention to a page by vectors: queries and sums are float32, keys and values are widened from bfloat16.
 *
 * Included by an instruction set's file behind layer.h. */
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
