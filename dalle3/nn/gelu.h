/* The Gaussian error linear unit, x Phi(x) (arXiv:1606.08415), in steps that a compiler turns into vectors. */
#include <math.h>
#include <string.h>

/* e^x for x <= 88, by Cephes' polynomial: the relative error is below 2e-7. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    int raised = ((int)n + 127) << 23;
    float power;
    memcpy(&power, &raised, sizeof power);
    return (p * r * r + r + 1.0f) * power;
}

/* Phi(x), the normal distribution, where `bell` is e^(-x^2 / 2); Abramowitz and Stegun's 7.1.26, within 1e-7. */
static inline float normal(float x, float bell)
{
    float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * fabsf(x));
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    float tail = 0.5f * p * t * bell; /* what lies beyond |x| */
    return x < 0 ? tail : 1.0f - tail;
}

static inline float gelu(float x)
{
    return x * normal(x, exponential(-0.5f * x * x));
}
