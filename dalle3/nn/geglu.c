/* y = up * gelu(gate) and its gradients for training on a CPU, in bfloat16, each value read and written once.
 *
 * `up` and `gate` lie side by side in rows (R, 2 H); y and its gradient are (R, H). nn/geglu.py compiles this file.
 */
#include "gelu.h"

typedef unsigned short half; /* bfloat16: the upper 16 bits of a float */

static inline float widened(half x)
{
    unsigned int bits = (unsigned int)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rounded to the nearest, ties to even. */
static inline half narrowed(float x)
{
    unsigned int bits;
    memcpy(&bits, &x, sizeof bits);
    unsigned int rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return x == x ? rounded : 0x7fc0; /* adding could make infinity of what is not a number */
}

void forward(int threads, long rows, long hidden, const half *x, half *y)
{
    #pragma omp parallel for num_threads(threads)
    for (long r = 0; r < rows; r++) {
        const half *up = x + r * 2 * hidden, *gate = up + hidden;
        half *to = y + r * hidden;
        for (long i = 0; i < hidden; i++) to[i] = narrowed(widened(up[i]) * gelu(widened(gate[i])));
    }
}

void backward(int threads, long rows, long hidden, const half *x, const half *gradient, half *result)
{
    #pragma omp parallel for num_threads(threads)
    for (long r = 0; r < rows; r++) {
        const half *up = x + r * 2 * hidden, *gate = up + hidden, *from = gradient + r * hidden;
        half *to_up = result + r * 2 * hidden, *to_gate = to_up + hidden;
        for (long i = 0; i < hidden; i++) {
            float g = widened(gate[i]), d = widened(from[i]);
            float bell = exponential(-0.5f * g * g), below = normal(g, bell);
            to_up[i] = narrowed(d * g * below);
            to_gate[i] = narrowed(d * widened(up[i]) * (below + g * bell * 0.39894228f));
        }
    }
}
