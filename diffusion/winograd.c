/* 3x3 convolutions by Winograd's minimal filtering, on the CPU.
 *
 * Tiles of m x m output pixels are taken in strips. A thread spreads a strip's input tiles, n = m + 2 pixels a side,
 * into n^2 matrices of tiles by channels; multiplies each by the matrix of its place in the transformed kernel, for a
 * panel of outputs at a time; and gathers that panel's products into pixels. What lies between input and output stays
 * in the cache. Sums are float32, also where x, weight and out are bfloat16.
 * winograd_native.py mirrors the structure and says what may be passed.
 *
 * Shapes: B pictures, H W pixels, C input and O output channels, both multiples of 16; T tiles of a strip.
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

/* The sums of a product, ROWS tiles by WIDEST vectors of outputs, fill the registers. */
#ifdef __AVX512F__
enum { LANES = 16, WIDEST = 4 };
#else
enum { LANES = 8, WIDEST = 2 };
#endif
enum { ROWS = 6, PANEL = LANES * WIDEST, MOST_TILES = 48, MOST_PLACES = 36 };

/* Elements between rows, and between matrices: a power of two would crowd them into one set of the cache. */
enum { GAP = 32 };

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_any __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

typedef struct {
    int threads;
    int size;                /* m: 2 or 4 */
    int half;                /* bfloat16, which needs m = 2, instead of float32 */
    int channels_last;       /* weight is (O, 3, 3, C) instead of (O, C, 3, 3) */
    int batch, height, width; /* H and W multiples of m */
    int channels, outputs;
    const void *x;           /* (B, H, W, C) */
    const void *weight;
    const float *bias;       /* (O,) */
    void *out;               /* (B, H, W, O) */
    void *kernel;            /* scratch, kernel_bytes: (n^2, O / PANEL, C, PANEL) */
    char *own;               /* scratch, own_bytes for each thread */
} Convolution;

typedef struct {
    int picture, top, left;
} Tile;

INLINE long tiles(const Convolution *c)
{
    return (long)c->batch * (c->height / c->size) * (c->width / c->size);
}

/* T, a multiple of ROWS. */
INLINE long strip_tiles(const Convolution *c)
{
    long share = (tiles(c) + c->threads - 1) / c->threads;
    return share < MOST_TILES ? (share + ROWS - 1) / ROWS * ROWS : MOST_TILES;
}

INLINE int places(const Convolution *c) { return (c->size + 2) * (c->size + 2); }
INLINE int element_bytes(const Convolution *c) { return c->half ? 2 : 4; }

/* Elements of one matrix of each kind. */
INLINE long spread_row(const Convolution *c) { return c->channels + GAP; }
INLINE long spread_size(const Convolution *c) { return strip_tiles(c) * spread_row(c) + GAP; }
INLINE long product_size(const Convolution *c) { return strip_tiles(c) * PANEL + GAP; }
INLINE long kernel_size(const Convolution *c) { return (long)c->channels * c->outputs + GAP; }

/* Of a thread's scratch: products first, a pixel of zeros behind them, then what is spread. */
INLINE long zeros_at(const Convolution *c) { return places(c) * product_size(c) * 4; }
INLINE long spread_at(const Convolution *c) { return zeros_at(c) + spread_row(c) * element_bytes(c); }

long own_bytes(const Convolution *c)
{
    long bytes = spread_at(c) + places(c) * spread_size(c) * element_bytes(c);
    return (bytes + 63) / 64 * 64;
}

long kernel_bytes(const Convolution *c) { return places(c) * kernel_size(c) * element_bytes(c); }

/* Whether bfloat16 may be passed. */
int multiplies_halves(void)
{
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

INLINE vec load(const void *from, long i, int half)
{
    if (!half) return *(const vec_any *)((const float *)from + i);
    return (vec)(__builtin_convertvector(*(const halves *)((const uint16_t *)from + i), bits) << 16);
}

/* v in bfloat16, in the lower half of each lane: to the nearest, of two as near the even one; NaN stays NaN. */
INLINE bits rounded(vec v)
{
    bits b = (bits)v, nan = (bits)(v != v);
    return (nan & (b >> 16 | 64)) | (~nan & (b + 0x7fff + (b >> 16 & 1)) >> 16);
}

INLINE void store(void *to, long i, vec v, int half)
{
    if (half) *(halves *)((uint16_t *)to + i) = __builtin_convertvector(rounded(v), halves);
    else *(vec_any *)((float *)to + i) = v;
}

/* The three transforms, of one row or column each; `step` lies between its elements. For m = 4 the polynomials are taken
 * at 0, -A, A, -B, B and infinity: with these the error is half that of 1 and 2, its largest a third, and their squares
 * and products are exact. */

#define A 0.625f
#define B 1.5f
#define A2 (A * A)
#define B2 (B * B)

INLINE void spread_line(int size, vec *d, int step)
{
    vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    if (size == 2) {
        d[0] = d0 - d2, d[step] = d1 + d2, d[2 * step] = d2 - d1, d[3 * step] = d1 - d3;
        return;
    }
    vec d4 = d[4 * step], d5 = d[5 * step];
    vec even_a = d4 - B2 * d2, odd_a = A * (d3 - B2 * d1), even_b = d4 - A2 * d2, odd_b = B * (d3 - A2 * d1);
    d[0] = A2 * B2 * d0 - (A2 + B2) * d2 + d4;
    d[step] = even_a + odd_a, d[2 * step] = even_a - odd_a;
    d[3 * step] = even_b + odd_b, d[4 * step] = even_b - odd_b;
    d[5 * step] = A2 * B2 * d1 - (A2 + B2) * d3 + d5;
}

INLINE void kernel_line(int size, const vec *g, int step, vec *to, int to_step)
{
    vec g0 = g[0], g1 = g[step], g2 = g[2 * step];
    if (size == 2) {
        to[0] = g0, to[to_step] = (g0 + g1 + g2) / 2, to[2 * to_step] = (g0 - g1 + g2) / 2, to[3 * to_step] = g2;
        return;
    }
    vec even_a = g0 + A2 * g2, odd_a = A * g1, even_b = g0 + B2 * g2, odd_b = B * g1;
    float over_a = 2 * A2 * (A2 - B2), over_b = 2 * B2 * (B2 - A2);
    to[0] = g0 / (A2 * B2);
    to[to_step] = (even_a + odd_a) / over_a, to[2 * to_step] = (even_a - odd_a) / over_a;
    to[3 * to_step] = (even_b + odd_b) / over_b, to[4 * to_step] = (even_b - odd_b) / over_b;
    to[5 * to_step] = g2;
}

INLINE void gather_line(int size, vec *m, int step)
{
    vec sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
    if (size == 2) {
        m[0] += sum_a, m[step] = difference_a - m[3 * step];
        return;
    }
    vec sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
    m[0] += sum_a + sum_b, m[step] = A * difference_a + B * difference_b, m[2 * step] = A2 * sum_a + B2 * sum_b;
    m[3 * step] = A * A2 * difference_a + B * B2 * difference_b + m[5 * step];
}

/* The block of the kernel of LANES outputs and as many channels, transformed. */
INLINE void transform_block(const Convolution *c, int size, int half, int output, int channel)
{
    const int n = size + 2, count = n * n;
    long tap_step = c->channels_last ? c->channels : 1, channel_step = c->channels_last ? 1 : 9;
    float taps[LANES][9][LANES] __attribute__((aligned(64))); /* channel, tap, output */
    for (int o = 0; o < LANES; o++)
        for (int tap = 0; tap < 9; tap++)
            for (int k = 0; k < LANES; k++) {
                long i = (output + o) * 9L * c->channels + tap * tap_step + (channel + k) * channel_step;
                if (half) {
                    uint32_t word = (uint32_t)((const uint16_t *)c->weight)[i] << 16;
                    memcpy(&taps[k][tap][o], &word, 4);
                } else taps[k][tap][o] = ((const float *)c->weight)[i];
            }
    vec columns[6 * 3], whole[LANES][MOST_PLACES];
    for (int k = 0; k < LANES; k++) {
        const vec *tap = (const vec *)taps[k];
        for (int j = 0; j < 3; j++) kernel_line(size, tap + j, 3, columns + j, 3);
        for (int i = 0; i < n; i++) kernel_line(size, columns + 3 * i, 1, whole[k] + i * n, 1);
    }
    long panel = output / PANEL * PANEL, lane = output - panel;
    long width = c->outputs - panel < PANEL ? c->outputs - panel : PANEL;
    for (int place = 0; place < count; place++) {
        long start = place * kernel_size(c) + panel * c->channels;
        if (half) { /* two channels side by side, as products take them */
            uint16_t *to = (uint16_t *)c->kernel + start + 2 * lane;
            for (int k = 0; k < LANES; k += 2)
                *(bits *)(to + (channel + k) * width) = rounded(whole[k][place]) | rounded(whole[k + 1][place]) << 16;
        } else {
            float *to = (float *)c->kernel + start + lane;
            for (int k = 0; k < LANES; k++) *(vec *)(to + (channel + k) * width) = whole[k][place];
        }
    }
}

INLINE Tile find(const Convolution *c, int size, long tile)
{
    long across = c->width / size, down = c->height / size;
    return (Tile){tile / (across * down), tile / across % down * size, tile % across * size};
}

INLINE long pixel(const Convolution *c, Tile tile, int y, int x)
{
    return ((long)tile.picture * c->height + tile.top + y) * c->width + tile.left + x;
}

/* A tile's input into row `row` of `spread` (n^2, T, C). */
INLINE void spread_tile(const Convolution *c, int size, int half, Tile tile, int row, const void *zeros, void *spread)
{
    const int n = size + 2;
    const void *pixels[MOST_PLACES];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            int y = tile.top + i - 1, x = tile.left + j - 1;
            int inside = y >= 0 && y < c->height && x >= 0 && x < c->width;
            const char *from = (const char *)c->x + pixel(c, tile, i - 1, j - 1) * c->channels * (half ? 2 : 4);
            pixels[i * n + j] = inside ? from : zeros;
        }
    for (int channel = 0; channel < c->channels; channel += LANES) {
        vec d[MOST_PLACES];
        for (int j = 0; j < n; j++) {
            for (int i = 0; i < n; i++) d[i * n + j] = load(pixels[i * n + j], channel, half);
            spread_line(size, d + j, n);
        }
        for (int i = 0; i < n; i++) {
            spread_line(size, d + i * n, 1);
            for (int j = i * n; j < i * n + n; j++)
                store(spread, j * spread_size(c) + row * spread_row(c) + channel, d[j], half);
        }
    }
}

/* out (ROWS, PANEL), its first `vectors` vectors, = a (ROWS, C) b (C, vectors). */
INLINE void multiply(const Convolution *c, int half, int vectors, const void *a, const void *b, float *out)
{
    vec sums[ROWS][WIDEST] = {};
    long row = spread_row(c), width = vectors * LANES;
    if (half) {
#ifdef __AVX512BF16__
        for (long k = 0; k < c->channels; k += 2)
            for (int r = 0; r < ROWS; r++) {
                int pair;
                memcpy(&pair, (const uint16_t *)a + r * row + k, 4);
                for (int v = 0; v < vectors; v++) {
                    const __m512bh *weights = (const __m512bh *)((const uint16_t *)b + k * width) + v;
                    sums[r][v] = (vec)_mm512_dpbf16_ps((__m512)sums[r][v], (__m512bh)_mm512_set1_epi32(pair), *weights);
                }
            }
#endif
    } else {
        for (long k = 0; k < c->channels; k++)
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < vectors; v++)
                    sums[r][v] += ((const float *)a)[r * row + k] * ((const vec *)((const float *)b + k * width))[v];
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) *(vec *)(out + r * PANEL + v * LANES) = sums[r][v];
}

/* Outputs `output` to `output` + LANES of a tile, whose products are LANES of row `row`, from `lane` on. */
INLINE void gather_tile(const Convolution *c, int size, int half, const float *products, Tile tile, int row, int lane,
                        int output)
{
    const int n = size + 2;
    vec m[MOST_PLACES], bias = load(c->bias, output, 0);
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < n; i++)
            m[i * n + j] = load(products + (i * n + j) * product_size(c), row * PANEL + lane, 0);
        gather_line(size, m + j, n);
    }
    for (int i = 0; i < size; i++) {
        gather_line(size, m + i * n, 1);
        for (int j = 0; j < size; j++)
            store(c->out, pixel(c, tile, i, j) * c->outputs + output, m[i * n + j] + bias, half);
    }
}

/* `vectors` vectors of outputs, from `output` on, of `count` tiles, whose input is spread. */
INLINE void panel(const Convolution *c, int size, int half, int vectors, const Tile *found, int count, int output,
                  const char *spread, float *products)
{
    const int n = size + 2, bytes = half ? 2 : 4;
    for (int place = 0; place < n * n; place++) {
        const char *b = (const char *)c->kernel + (place * kernel_size(c) + (long)output * c->channels) * bytes;
        const char *a = spread + place * spread_size(c) * bytes;
        float *out = products + place * product_size(c);
        for (int row = 0; row < count; row += ROWS)
            multiply(c, half, vectors, a + row * spread_row(c) * bytes, b, out + row * PANEL);
    }
    for (int row = 0; row < count; row++)
        for (int lane = 0; lane < vectors * LANES; lane += LANES)
            gather_tile(c, size, half, products, found[row], row, lane, output + lane);
}

INLINE void strip(const Convolution *c, int size, int half, long first, int count)
{
    char *own = c->own + omp_get_thread_num() * own_bytes(c);
    char *zeros = own + zeros_at(c), *spread = own + spread_at(c);
    float *products = (float *)own;
    Tile found[MOST_TILES];
    memset(zeros, 0, spread_at(c) - zeros_at(c));
    for (int row = 0; row < count; row++) {
        found[row] = find(c, size, first + row);
        spread_tile(c, size, half, found[row], row, zeros, spread);
    }
    for (int output = 0; output < c->outputs; output += PANEL) {
        int vectors = (c->outputs - output) / LANES;
        if (vectors >= WIDEST) panel(c, size, half, WIDEST, found, count, output, spread, products);
        else if (WIDEST > 3 && vectors == 3) panel(c, size, half, 3, found, count, output, spread, products);
        else if (WIDEST > 2 && vectors == 2) panel(c, size, half, 2, found, count, output, spread, products);
        else panel(c, size, half, 1, found, count, output, spread, products);
    }
}

INLINE void run(const Convolution *c, int size, int half)
{
    #pragma omp parallel num_threads(c->threads)
    {
        #pragma omp for collapse(2)
        for (int output = 0; output < c->outputs; output += LANES)
            for (int channel = 0; channel < c->channels; channel += LANES)
                transform_block(c, size, half, output, channel);
        #pragma omp for schedule(dynamic)
        for (long first = 0; first < tiles(c); first += strip_tiles(c)) {
            long left = tiles(c) - first;
            strip(c, size, half, first, left < strip_tiles(c) ? left : strip_tiles(c));
        }
    }
}

void convolve(const Convolution *c)
{
    if (c->half) run(c, 2, 1);
    else if (c->size == 2) run(c, 2, 0);
    else run(c, 4, 0);
}
