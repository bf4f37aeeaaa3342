/* Residual branches of a transformer for one new position of a few rows, on the CPU.
 *
 * One position touches every weight once, so its time is that of reading them. Each function is one parallel region
 * with a barrier or two inside. Weights come in panels of 16 outputs, (outputs / 16, inputs, 16), float32 or bfloat16, so
 * that a product streams through memory and multiplies whole vectors of outputs; activations are float32.
 * nn/native.py compiles this file, mirrors its structures and says what may be passed.
 *
 * Shapes: R rows, D width, H heads, K width of a head, F hidden width of a feed-forward, L caption positions,
 * S positions of a buffer.
 */
#include <math.h>
#include <omp.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif
#include "gelu.h"

/* Floats in a vector register, and rows of a panel's outputs that the registers hold beside what they are made of. */
#if defined __AVX512F__
enum { LANES = 16, MOST_ROWS = 16 };
#elif defined __AVX__
enum { LANES = 8, MOST_ROWS = 6 };
#else
enum { LANES = 4, MOST_ROWS = 4 };
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_any __attribute__((vector_size(4 * LANES), aligned(4)));
typedef unsigned int bits __attribute__((vector_size(4 * LANES)));
typedef unsigned short half_any __attribute__((vector_size(2 * LANES), aligned(2)));

enum { PANEL = 16, PARTS = PANEL / LANES, MOST_SUMS = 16, AHEAD = 16, WIDEST_HEAD = 512 };

/* Floats between rows that a product reads side by side: a power of two would crowd them into one set of the cache. */
enum { GAP = 16 };

typedef struct {
    int threads;
    int rows, dim;
    int half;                             /* weights are bfloat16 */
    int quarter;                          /* channels lent from above and from the left; 0 where nothing shifts */
    float epsilon;
    const float *norm_weight, *norm_bias; /* (D,) */
    const float *post_weight, *post_bias; /* (D,) the norm behind the branch, or NULL */
    const float *scale;                   /* (D,) or NULL */
    float *own;                           /* scratch of each thread, own_size floats apart */
    float *shared;                        /* scratch of all threads */
    int own_size;
} Branch;

typedef struct {
    Branch branch;
    int heads, width;
    int pictures;                         /* rows that share a caption */
    int caption_length;                   /* keys of the caption kept apart, 0 where they lead in the buffer */
    int size;                             /* S */
    const void *qkv, *out;                /* (3 H K, D), (D, H K), in panels */
    const float *out_bias;                /* (D,) */
    const float *caption_keys, *caption_values; /* (R / pictures, H, L, K) */
    float *keys, *values;                 /* (R, H, S, K) */
} Attention;

typedef struct {
    Branch branch;
    int hidden;
    const void *up, *gate, *down;         /* (F, D), (F, D), (D, F), in panels */
    const float *up_bias, *gate_bias, *down_bias;
} FeedForward;

/* What a position's neighbours lend, (R, 2 quarter) each, NULL for zeros, and where it leaves what it lends. */
typedef struct {
    const float *above, *left;
    float *store;
} Shift;

/* The buffer's positions that a query sees: `count` runs, equally spaced. */
typedef struct {
    int count, first[8], length[8], stride[8];
} Runs;

#define INLINE static inline __attribute__((always_inline))

INLINE float total(vec v)
{
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#elif defined __AVX__
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
#endif
}

/* Some of the 16 weights of a panel's outputs for one input. */
INLINE vec load(const void *panel, long input, int part, const int half)
{
    long at = input * PANEL + part * LANES;
    if (!half) return *(const vec_any *)((const float *)panel + at);
    half_any narrow = *(const half_any *)((const unsigned short *)panel + at);
    return (vec)(__builtin_convertvector(narrow, bits) << 16);
}

/* Adds what one input gives to a panel's outputs for some rows. */
INLINE void add(const int half, const int rows, const void *panel, long input, const float *x, long row, vec (*sums)[PARTS])
{
    vec weights[PARTS];
    for (int part = 0; part < PARTS; part++) weights[part] = load(panel, input, part, half);
    for (int r = 0; r < rows; r++)
        for (int part = 0; part < PARTS; part++) sums[r][part] += weights[part] * x[r * row + input];
}

/* A panel's outputs for a constant number of rows, kept in registers; `ways` sums in turn hide the latency of adding. */
INLINE void tile(const int half, const int rows, const int ways, const void *panel, int inner, const float *x,
                 const float *bias, float *y, int step)
{
    vec sums[MOST_SUMS][PARTS] = {};
    int i = 0;
    for (int s = 0; bias && s < rows * PARTS; s++) sums[s / PARTS][s % PARTS] = *(const vec_any *)(bias + s % PARTS * LANES);
    for (; i + ways <= inner; i += ways)
        for (int way = 0; way < ways; way++) {
            __builtin_prefetch((const char *)panel + (long)(i + way + AHEAD) * PANEL * (half ? 2 : 4));
            add(half, rows, panel, i + way, x, inner + GAP, sums + way * rows);
        }
    for (; i < inner; i++) add(half, rows, panel, i, x, inner + GAP, sums);
    for (int r = 0; r < rows; r++)
        for (int part = 0; part < PARTS; part++) {
            vec sum = sums[r][part];
            for (int way = 1; way < ways; way++) sum += sums[way * rows + r][part];
            *(vec_any *)(y + (long)r * step + part * LANES) = sum;
        }
}

INLINE void panel_rows(const int half, const void *panel, int inner, const float *x, int rows, const float *bias, float *y,
                       int step)
{
    for (int r = 0; r < rows;) {
        const float *from = x + (long)r * (inner + GAP);
        float *to = y + (long)r * step;
        int left = rows - r;
        if (left >= MOST_ROWS) tile(half, MOST_ROWS, 1, panel, inner, from, bias, to, step), r += MOST_ROWS;
        else if (MOST_ROWS > 8 && left >= 8) tile(half, 8, 2, panel, inner, from, bias, to, step), r += 8;
        else if (left >= 4) tile(half, 4, MOST_ROWS > 8 ? 2 : 1, panel, inner, from, bias, to, step), r += 4;
        else if (left >= 2) tile(half, 2, MOST_ROWS > 8 ? 4 : 2, panel, inner, from, bias, to, step), r += 2;
        else tile(half, 1, 4, panel, inner, from, bias, to, step), r += 1;
    }
}

/* y (R, step), columns [first, last), both multiples of 16, of x (R, inner + GAP) and panels (outputs / 16, inner, 16). */
static void product(int half, const void *panels, const float *bias, int first, int last, int inner, const float *x,
                    int rows, float *y, int step)
{
    for (int o = first; o < last; o += PANEL) {
        const void *panel = (const char *)panels + (long)o * inner * (half ? 2 : 4);
        const float *own = bias ? bias + o : 0;
        if (half) panel_rows(1, panel, inner, x, rows, own, y + o, step);
        else panel_rows(0, panel, inner, x, rows, own, y + o, step);
    }
}

/* The share [first, last) of `count` things that comes in pieces of `piece` to this thread. */
static inline void share(int count, int piece, int *first, int *last)
{
    int pieces = (count + piece - 1) / piece, thread = omp_get_thread_num(), threads = omp_get_num_threads();
    *first = (long)pieces * thread / threads * piece;
    *last = (long)pieces * (thread + 1) / threads * piece;
    if (*first > count) *first = count;
    if (*last > count) *last = count;
}

static void normalise(const float *from, const float *weight, const float *bias, float epsilon, int dim, float *to)
{
    float mean = 0, variance = 0;
    for (int i = 0; i < dim; i++) mean += from[i];
    mean /= dim;
    for (int i = 0; i < dim; i++) variance += (from[i] - mean) * (from[i] - mean);
    float factor = 1.0f / sqrtf(variance / dim + epsilon);
    for (int i = 0; i < dim; i++) to[i] = (from[i] - mean) * factor * weight[i] + bias[i];
}

static void lend(const float *from, int count, float *to)
{
    if (from) memcpy(to, from, count * sizeof *to);
    else memset(to, 0, count * sizeof *to);
}

/* Every thread's own x (R, D + GAP), normalised and shifted; behind it, what the position lends, (R, 2 quarter). */
static float *prepare(const Branch *b, const float *source, const Shift *shift)
{
    int q = b->quarter, dim = b->dim;
    float *x = b->own + (long)omp_get_thread_num() * b->own_size, *lent = x + (long)b->rows * (dim + GAP);
    for (int r = 0; r < b->rows; r++) {
        float *row = x + (long)r * (dim + GAP), *kept = lent + (long)r * 2 * q;
        normalise(source + (long)r * dim, b->norm_weight, b->norm_bias, b->epsilon, dim, row);
        if (!q) continue;
        memcpy(kept, row, 2 * q * sizeof *row);
        lend(shift->above ? shift->above + (long)r * 2 * q : 0, q, row);
        lend(shift->left ? shift->left + (long)r * 2 * q + q : 0, q, row + q);
    }
    return x;
}

/* Adds the last product of a branch to target (R, D); all threads have reached the barrier before it. */
static void finish(const Branch *b, const void *weights, const float *bias, int inner, const float *x, float *y,
                   float *target, const float *lent, const Shift *shift)
{
    int first, last, rows = b->rows, dim = b->dim;
    if (b->quarter && omp_get_thread_num() == 0)
        memcpy(shift->store, lent, (long)rows * 2 * b->quarter * sizeof *lent);
    share(dim, PANEL, &first, &last);
    product(b->half, weights, bias, first, last, inner, x, rows, y, dim);
    if (b->post_weight) {
        #pragma omp barrier
        share(rows, 1, &first, &last);
        for (int r = first; r < last; r++) {
            float *row = y + (long)r * dim;
            normalise(row, b->post_weight, b->post_bias, b->epsilon, dim, row);
            for (int i = 0; i < dim; i++) target[(long)r * dim + i] += row[i] * (b->scale ? b->scale[i] : 1);
        }
        return;
    }
    for (int r = 0; r < rows; r++)
        for (int i = first; i < last; i++)
            target[(long)r * dim + i] += y[(long)r * dim + i] * (b->scale ? b->scale[i] : 1);
}

/* Turns channel pairs by the angles whose cosines and sines are in `turn` (K / 2, 2). */
static void rotate(float *head, const float *turn, int width)
{
    for (int i = 0; i < width; i += 2) {
        float even = head[i], odd = head[i + 1];
        head[i] = even * turn[i] - odd * turn[i + 1];
        head[i + 1] = odd * turn[i] + even * turn[i + 1];
    }
}

static int score(const float *query, const float *keys, int count, long step, int width, float *scores)
{
    for (int j = 0; j < count; j++) {
        vec sum = {0};
        for (int i = 0; i < width; i += LANES)
            sum += *(const vec_any *)(query + i) * *(const vec_any *)(keys + j * step + i);
        scores[j] = total(sum);
    }
    return count;
}

static int gather(const float *shares, const float *values, int count, long step, int width, float *found)
{
    int j = 0;
    for (; j + 4 <= count; j += 4) {
        const float *v = values + j * step;
        for (int i = 0; i < width; i++)
            found[i] += shares[j] * v[i] + shares[j + 1] * v[step + i] + shares[j + 2] * v[2 * step + i]
                        + shares[j + 3] * v[3 * step + i];
    }
    for (; j < count; j++)
        for (int i = 0; i < width; i++) found[i] += shares[j] * values[j * step + i];
    return count;
}

static float soften(float *scores, int count)
{
    float most = scores[0], sum = 0;
    for (int j = 1; j < count; j++) most = scores[j] > most ? scores[j] : most;
    for (int j = 0; j < count; j++) scores[j] = exponential(scores[j] - most);
    for (int j = 0; j < count; j++) sum += scores[j];
    return 1.0f / sum;
}

/* What one query finds, (K,), in the caption's keys and in the runs of the buffer that it sees. */
static void attend(const Attention *a, int row, int head, const float *query, const Runs *runs, float *scores, float *out)
{
    int width = a->width, length = a->caption_length, seen = 0;
    long in_caption = ((long)(row / a->pictures) * a->heads + head) * length * width;
    long in_buffer = ((long)row * a->heads + head) * a->size * width;
    float found[WIDEST_HEAD] = {0};
    seen += score(query, a->caption_keys + in_caption, length, width, width, scores);
    for (int run = 0; run < runs->count; run++)
        seen += score(query, a->keys + in_buffer + (long)runs->first[run] * width, runs->length[run],
                      (long)runs->stride[run] * width, width, scores + seen);
    float factor = soften(scores, seen);
    seen = gather(scores, a->caption_values + in_caption, length, width, width, found);
    for (int run = 0; run < runs->count; run++)
        seen += gather(scores + seen, a->values + in_buffer + (long)runs->first[run] * width, runs->length[run],
                       (long)runs->stride[run] * width, width, found);
    for (int i = 0; i < width; i++) out[i] = found[i] * factor;
}

/* target (R, D) += the attention of source (R, D), whose keys and values go to `position` of the buffer. */
void attention(const Attention *a, float *target, const float *source, const Shift *shift, const float *turn,
               int position, const Runs *runs)
{
    const Branch *b = &a->branch;
    int rows = b->rows, dim = b->dim, width = a->width, inner = a->heads * width;
    float *qkv = b->shared, *found = qkv + (long)rows * 3 * inner, *y = found + (long)rows * (inner + GAP);
    float factor = 1.0f / sqrtf(width);
    #pragma omp parallel num_threads(b->threads)
    {
        float *x = prepare(b, source, shift), *lent = x + (long)rows * (dim + GAP), *scores = lent + (long)rows * 2 * b->quarter;
        int first, last;
        if (a->heads % omp_get_num_threads() == 0) { /* a thread's heads are its own as far as the barrier */
            share(a->heads, 1, &first, &last);
            for (int part = 0; part < 3; part++)
                product(b->half, a->qkv, 0, part * inner + first * width, part * inner + last * width, dim, x, rows, qkv,
                        3 * inner);
            first *= rows, last *= rows;
        } else {
            share(3 * inner, PANEL, &first, &last);
            product(b->half, a->qkv, 0, first, last, dim, x, rows, qkv, 3 * inner);
            #pragma omp barrier
            share(a->heads * rows, 1, &first, &last);
        }
        for (int pair = first; pair < last; pair++) {
            int head = pair / rows, r = pair % rows;
            float *query = qkv + (long)r * 3 * inner + head * width, *key = query + inner, *value = key + inner;
            long at = (((long)r * a->heads + head) * a->size + position) * width;
            if (turn)
                for (int part = 0; part < 3; part++) rotate(query + part * inner, turn, width);
            for (int i = 0; i < width; i++) query[i] *= factor;
            memcpy(a->keys + at, key, width * sizeof *key);
            memcpy(a->values + at, value, width * sizeof *value);
            attend(a, r, head, query, runs, scores, found + (long)r * (inner + GAP) + head * width);
        }
        #pragma omp barrier
        finish(b, a->out, a->out_bias, inner, found, y, target, lent, shift);
    }
}

/* target (R, D) += the gated feed-forward of source (R, D). */
void feed_forward(const FeedForward *f, float *target, const float *source, const Shift *shift)
{
    const Branch *b = &f->branch;
    int rows = b->rows, dim = b->dim, hidden = f->hidden;
    int step = hidden + GAP;
    float *up = b->shared, *gate = up + (long)rows * step, *y = gate + (long)rows * step;
    #pragma omp parallel num_threads(b->threads)
    {
        float *x = prepare(b, source, shift), *lent = x + (long)rows * (dim + GAP);
        int first, last;
        share(hidden, PANEL, &first, &last);
        product(b->half, f->up, f->up_bias, first, last, dim, x, rows, up, step);
        product(b->half, f->gate, f->gate_bias, first, last, dim, x, rows, gate, step);
        for (int r = 0; r < rows; r++)
            for (int i = first; i < last; i++) up[(long)r * step + i] *= gelu(gate[(long)r * step + i]);
        #pragma omp barrier
        finish(b, f->down, f->down_bias, hidden, up, y, target, lent, shift);
    }
}

/* y (R, outputs) = x (R, inner + GAP) weights^T + bias; outputs is a multiple of 16. */
void linear(int threads, int half, const void *weights, const float *bias, const float *x, float *y, int rows, int inner, int outputs)
{
    #pragma omp parallel num_threads(threads)
    {
        int first, last;
        share(outputs, PANEL, &first, &last);
        product(half, weights, bias, first, last, inner, x, rows, y, outputs);
    }
}
