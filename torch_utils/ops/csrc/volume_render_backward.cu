// Gradients of the volume rendering, one ray a warp; a block's warps go through their rays' samples in step, sixteen at a
// time, and add up the gradient of the first layer together.
//
// The forward pass left the sorted depths and densities; everything else is computed again. Depths are constants: no
// gradient passes through the choice of samples. Sums in the planes are atomic, hence in no fixed order; those of the
// decoder are kept apart for every block.
#include "shared/marching.h"

namespace omni {

constexpr int UNIT_ROW = H + 8, COLOUR_ROW = O + 8;        // floats from row to row: columns are read without conflicts
constexpr int HIDDEN_TILES = H / 16, OWN_TILES = (HIDDEN_TILES + WARPS - 1) / WARPS;   // rows of weight gradients, per warp
constexpr int OWN_WEIGHTS = (H * O + THREADS - 1) / THREADS;

// Floats of a block's row of `partial`.
struct Partial {
    static constexpr int W1 = 0, W2 = H * C, B1 = W2 + O * H, DENSITY_ROW = B1 + WARPS * H, B2 = DENSITY_ROW + WARPS * H,
                         DENSITY_BIAS = B2 + WARPS * O, SIZE = DENSITY_BIAS + WARPS;
};

// What one warp keeps in shared memory.
struct BackwardRay {
    float *features;                 // [S to 16, ROW], then their gradient
    float *share, *grad;             // [S to 16] part in the composite; colour times its gradient, then gradient of density
    float *features_grad;            // [O] of the ray
    float *hidden_grad, *composite;  // [H] that gradient by the hidden units, composited hidden units: colours without activation
    float *units, *hidden, *colours; // [16, UNIT_ROW] twice and [16, COLOUR_ROW]: gradient before softplus, values, gradient
    float *bias1, *density_row, *bias2;   // [H], [H], [O] sums over all the warp's rays
    RaySamples samples;
};

OMNI_DEVICE BackwardRay make_backward_ray(Arena& arena, int num) {
    const int rows = up_to(num, 16);
    BackwardRay r;
    r.features = Arena::floats(arena, rows * ROW);
    r.share = Arena::floats(arena, rows);
    r.grad = Arena::floats(arena, rows);
    r.features_grad = Arena::floats(arena, O);
    r.hidden_grad = Arena::floats(arena, H);
    r.composite = Arena::floats(arena, H);
    r.units = Arena::floats(arena, 16 * UNIT_ROW);
    r.hidden = LINEAR ? nullptr : Arena::floats(arena, 16 * UNIT_ROW);
    r.colours = LINEAR ? nullptr : Arena::floats(arena, 16 * COLOUR_ROW);
    r.bias1 = Arena::floats(arena, H);
    r.density_row = Arena::floats(arena, H);
    r.bias2 = Arena::floats(arena, O);
    r.samples.depth = Arena::floats(arena, rows);
    r.samples.density = Arena::floats(arena, rows);
    r.samples.alpha = Arena::floats(arena, rows);
    r.samples.passed = Arena::floats(arena, rows);
    r.samples.weight = Arena::floats(arena, rows);
    r.samples.slope = Arena::floats(arena, rows);
    return r;
}

// Sums of one thread over all its rays.
struct Sums {
    float w1[OWN_TILES][CT][4];                            // rows are hidden units, columns channels
    float w2_tiles[LINEAR ? 1 : OWN_TILES][OT][4];         // rows are hidden units, columns colours
    float w2[LINEAR ? OWN_WEIGHTS : 1];                    // numbers thread, thread + THREADS, ... of [O, H]
    float density_bias;
};

struct Weights {
    Decoder forward;
    float2 *first, *second;          // [HT, CT, 32], [OT, HT, 32]: from results back to what they came from
};

OMNI_DEVICE Weights load_weights(Arena& arena, const RenderParams& p) {
    Weights w;
    w.forward = load_decoder(arena, p, !LINEAR);
    w.first = reinterpret_cast<float2*>(Arena::floats(arena, HT * CT * LANES * 2));
    load_fragments(w.first, HT, CT, paired, [&](int k, int n) { return weight1(p, k, n); });
    w.second = nullptr;
    if (!LINEAR) {
        w.second = reinterpret_cast<float2*>(Arena::floats(arena, OT * HT * LANES * 2));
        load_fragments(w.second, OT, HT, paired, [&](int k, int n) { return weight2(p, k, n); });
    }
    return w;
}

// Weights along the ray, shares, features, and the gradient of the ray's colours by hidden units.
OMNI_DEVICE void prepare_ray(const RenderParams& p, const BackwardRay& r, const RayLine& line, i64 ray, int num) {
    for (int s = lane(); s < num; s += LANES) {
        r.samples.depth[s] = p.sorted_depths[ray * num + s];
        r.samples.density[s] = p.sorted_density[ray * num + s];
    }
    for (int o = lane(); o < O; o += LANES)
        r.features_grad[o] = o < OMNI_COLOURS ? p.features_grad[ray * OMNI_COLOURS + o] : 0.0f;
    __syncwarp();
    interval_weights(r.samples, num);
    for (int s = lane(); s < up_to(num, 16); s += LANES) {
        r.share[s] = s < num ? sample_share(r.samples, s, num) : 0.0f;
        r.grad[s] = 0.0f;
    }
    __syncwarp();
    const Stored* grid = grid_of(p, ray);
    for (int base = 0; base < up_to(num, 16); base += LANES / GROUP) {
        const int s = base + lane() / GROUP;
        const float3 x = RayLine::point(line, s < num ? r.samples.depth[s] : 0.0f);
        if (s < num && (r.share[s] != 0.0f || in_crop(p, x))) look_up(p, grid, x, r.features + s * ROW);
        else if (s < up_to(num, 16)) clear_row(r.features + s * ROW);
    }
    if (LINEAR)
        for (int h = lane(); h < H; h += LANES) {
            float sum = 0.0f;
            for (int o = 0; o < OMNI_COLOURS && h < OMNI_HIDDEN; o++)
                sum += __ldg(p.w2 + (1 + o) * OMNI_HIDDEN + h) * r.features_grad[o];
            r.hidden_grad[h] = sum;
        }
    __syncwarp();
}

// Colour of every sample times the gradient of the ray's colour, into r.grad; composited hidden units.
OMNI_DEVICE void colour_products(const Weights& w, const BackwardRay& r, int num) {
    float2 columns[HT];
#pragma unroll
    for (int tile = 0; tile < HT; tile++) columns[tile] = {0.0f, 0.0f};
    float bias = 0.0f;
    for (int o = lane(); o < O; o += LANES) bias += w.forward.bias2[o] * r.features_grad[o];
    bias = LINEAR ? warp_sum(bias) : 0.0f;
    for (int row = 0; row < num; row += 16) {
        const int low = row + lane() / 4, high = low + 8;
        float hidden[HT][4];
        float2 product;
        first_layer(hidden, w.forward, r.features + row * ROW);
        softplus_tiles(hidden);
        if constexpr (LINEAR) {
            add_rows<HT>(columns, hidden, r.share[low], r.share[high]);
            product = row_products<HT>(hidden, r.hidden_grad);
        } else {
            float colour[OT][4];
            second_layer(colour, w.forward, hidden);
            product = row_products<OT>(colour, r.features_grad);
        }
        if (lane() % 4 == 0) r.grad[low] = product.x + bias, r.grad[high] = product.y + bias;
    }
    if (LINEAR) store_columns<HT>(r.composite, columns);
    __syncwarp();
}

// From r.grad as colour_products left it to the gradient of the densities. Intervals are gone through from the far end; what
// lies behind one is an affine function of what lies behind the next, hence a scan.
OMNI_DEVICE void density_gradient(const RenderParams& p, const BackwardRay& r, i64 ray, int num) {
    const RaySamples& s = r.samples;
    const float2 sums = opacity_and_depth(s, num);
    float constant = 0.0f;
    for (int o = lane(); o < O; o += LANES) constant -= r.features_grad[o];
    constant = (p.white_back ? warp_sum(constant) : 0.0f) + p.opacity_grad[ray];
    // A ray without weight has a depth that depends on nothing.
    const float by_depth = sums.x > 0.0f ? p.depth_grad[ray] / sums.x : 0.0f, mean = sums.x > 0.0f ? sums.y / sums.x : 0.0f;
    float carry = 0.0f;
    for (int top = num - 2; top >= 0; top -= LANES) {
        const int i = top - lane();
        float factor = 1.0f, sum = 0.0f, weight_grad = 0.0f;
        if (i >= 0) {
            weight_grad = (r.grad[i] + r.grad[i + 1]) * 0.5f + constant;
            weight_grad += by_depth * ((s.depth[i] + s.depth[i + 1]) * 0.5f - mean);
            sum = weight_grad * s.alpha[i];
            factor = 1.0f - s.alpha[i] + 1e-10f;
        }
        for (int by = 1; by < LANES; by *= 2) {
            const float before = shuffle_up(sum, by), factor_before = shuffle_up(factor, by);
            if (lane() >= by) sum += factor * before, factor *= factor_before;
        }
        const float before = shuffle_up(sum, 1), factor_before = shuffle_up(factor, 1);
        const float behind = lane() ? before + factor_before * carry : carry;
        if (i >= 0) s.slope[i] *= s.passed[i] * (weight_grad - behind);
        carry = shuffle(sum, LANES - 1) + shuffle(factor, LANES - 1) * carry;
    }
    __syncwarp();
    for (int i = lane(); i < up_to(num, 16); i += LANES) {
        const bool counts = i < num && s.density[i] != EMPTY_DENSITY;
        r.grad[i] = counts ? 0.5f * ((i ? s.slope[i - 1] : 0.0f) + (i < num - 1 ? s.slope[i] : 0.0f)) : 0.0f;
    }
    __syncwarp();
}

template <int TILES>
OMNI_DEVICE void store_tile(float* to, int stride, const float (*result)[4]) {
    float* low = to + lane() / 4 * stride + lane() % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        *reinterpret_cast<float2*>(low + tile * 8) = {result[tile][0], result[tile][1]};
        *reinterpret_cast<float2*>(low + tile * 8 + 8 * stride) = {result[tile][2], result[tile][3]};
    }
}

// to [8 TILES] += sum over sixteen rows of a result, by the rows' factors.
template <int TILES>
OMNI_DEVICE void add_columns(float* to, const float (*result)[4], float low, float high) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        float2 sum = {result[tile][0] * low + result[tile][2] * high, result[tile][1] * low + result[tile][3] * high};
        for (int mask = 4; mask < LANES; mask *= 2) sum.x += shuffle_xor(sum.x, mask), sum.y += shuffle_xor(sum.y, mask);
        if (lane() < 4) to[tile * 8 + lane() * 2] += sum.x, to[tile * 8 + lane() * 2 + 1] += sum.y;
    }
}

template <int TILES>
OMNI_DEVICE void clear_tiles(float (*result)[4]) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) result[tile][0] = result[tile][1] = result[tile][2] = result[tile][3] = 0.0f;
}

// Gradient of sixteen rows of features, in `point`; what the sums over rows need goes into shared memory.
OMNI_DEVICE void backward_rows(const Weights& w, const BackwardRay& r, int row, float (*point)[4]) {
    const int low = row + lane() / 4, high = low + 8;
    const float share[2] = {r.share[low], r.share[high]}, grad[2] = {r.grad[low], r.grad[high]};
    float hidden[HT][4], units[HT][4];
    first_layer(hidden, w.forward, r.features + row * ROW);
    softplus_tiles(hidden, units);                         // units: derivative of the softplus, then the gradient
    add_columns<HT>(r.density_row, hidden, grad[0], grad[1]);
    float by_colour[LINEAR ? 1 : HT][4];
    if constexpr (!LINEAR) {
        float colour[OT][4];
        second_layer(colour, w.forward, hidden);
#pragma unroll
        for (int tile = 0; tile < OT; tile++)
            for (int i = 0; i < 4; i++)
                colour[tile][i] = r.features_grad[tile * 8 + lane() % 4 * 2 + i % 2] * share[i / 2] * activation_slope(colour[tile][i]);
        add_columns<OT>(r.bias2, colour, 1.0f, 1.0f);
        store_tile<HT>(r.hidden, UNIT_ROW, hidden);
        store_tile<OT>(r.colours, COLOUR_ROW, colour);
        clear_tiles<HT>(by_colour);
        multiply_results<HT, OT>(by_colour, colour, w.second);
    }
#pragma unroll
    for (int tile = 0; tile < HT; tile++) {
        const int column = tile * 8 + lane() % 4 * 2;
        const float2 row_ = *reinterpret_cast<const float2*>(w.forward.density_row + column);
        const float2 of_ray = LINEAR ? *reinterpret_cast<const float2*>(r.hidden_grad + column) : float2{0.0f, 0.0f};
        for (int i = 0; i < 4; i++) {
            const float colour = LINEAR ? (i % 2 ? of_ray.y : of_ray.x) * share[i / 2] : by_colour[LINEAR ? 0 : tile][i];
            units[tile][i] *= colour + (i % 2 ? row_.y : row_.x) * grad[i / 2];
        }
    }
    add_columns<HT>(r.bias1, units, 1.0f, 1.0f);
    store_tile<HT>(r.units, UNIT_ROW, units);
    multiply_results<CT, HT>(point, units, w.first);
}

// sum [16, 8 TILES] += left^T right over sixteen rows; left points to the first of the sixteen columns that count.
template <int TILES>
OMNI_DEVICE void add_outer(float (*sum)[4], const float* left, int left_stride, const float* right, int right_stride) {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int k = 0; k < 16; k += 8) {
        const float *low = left + (k + t) * left_stride + g, *high = low + 4 * left_stride;
        const float x[4] = {low[0], low[8], high[0], high[8]};
        const Split<4> a = Split<4>::of(x);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const float* y = right + (k + t) * right_stride + tile * 8 + g;
            const Split<2> b = second_factor({y[0], y[4 * right_stride]});
            mma_split(sum[tile], a.high, a.low, b.high, b.low);
        }
    }
}

// This warp's rows of the weights' gradients, from the sixteen rows of every warp's ray; `first` is that of warp 0.
OMNI_DEVICE void add_weights(const BackwardRay& first, int warp_floats, Sums& sums, int row) {
    for (int w = 0; w < WARPS; w++) {
        const int ahead = w * warp_floats;
#pragma unroll
        for (int own = 0; own < OWN_TILES; own++) {
            const int tile = warp() + own * WARPS;
            if (tile >= HIDDEN_TILES) continue;
            add_outer<CT>(sums.w1[own], first.units + ahead + tile * 16, UNIT_ROW, first.features + ahead + row * ROW, ROW);
            if constexpr (!LINEAR)
                add_outer<OT>(sums.w2_tiles[own], first.hidden + ahead + tile * 16, UNIT_ROW, first.colours + ahead, COLOUR_ROW);
        }
    }
}

// The same for the second layer where colours have no activation: one product a ray.
OMNI_DEVICE void add_composites(const BackwardRay& first, int warp_floats, Sums& sums) {
#pragma unroll 1
    for (int w = 0; w < WARPS; w++) {
        const float *grad = first.features_grad + w * warp_floats, *composite = first.composite + w * warp_floats;
#pragma unroll
        for (int k = 0; k < OWN_WEIGHTS; k++) {
            const int i = threadIdx.x + k * THREADS;
            if (i < H * O) sums.w2[k] += grad[i / H] * composite[i % H];
        }
    }
}

OMNI_DEVICE float dot(const float4& a, const float4& b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
OMNI_DEVICE float4 times(float a, const float4& b) { return {a * b.x, a * b.y, a * b.z, a * b.w}; }

OMNI_DEVICE void add_along(float3& x, int axis, float value) {
    if (axis == 0) x.x += value;
    else if (axis == 1) x.y += value;
    else x.z += value;
}

// Add the gradient of one sample's features to the planes; returns this lane's part of the gradient by its position.
OMNI_DEVICE float3 scatter(const RenderParams& p, const Stored* grid, float* grid_grad, const float3& point, const float* row) {
    const int first = lane() % GROUP * 4;
    float3 by_position = {0.0f, 0.0f, 0.0f};
#pragma unroll 1
    for (int plane = 0; plane < 3; plane++) {
        const PlaneCells c = plane_cells(p, point, plane);
        float3 slopes = {0.0f, 0.0f, 0.0f};
        for (int corner = 0; corner < 4 * LAYERS; corner++) {
            const int k = corner / 4, j = corner / 2 % 2, l = corner % 2;
            const float x = c.x.weight[l], y = c.y.weight[j], z = c.z.weight[k], weight = z * y * (1.0f / 3) * x;
            const int offset = cell_offset(p, c, plane, k, j, l) + first;
            float product = 0.0f;
            for (int q = first; q < C; q += 4 * GROUP) {
                const float4 grad = *reinterpret_cast<const float4*>(row + q);
                if (weight != 0.0f) add_to_global(grid_grad + offset + q - first, times(weight, grad));
                if (p.origins_grad) product += dot(grad, load_four(grid + offset + q - first));
            }
            slopes.x += product * z * y * c.x.slope[l];
            slopes.y += product * z * c.y.slope[j] * x;
            slopes.z += product * c.z.slope[k] * y * x;
        }
        const float step = 0.5f * p.scale / 3;
        add_along(by_position, p.axes[plane * 3], slopes.x * step * p.width);
        add_along(by_position, p.axes[plane * 3 + 1], slopes.y * step * p.height);
        add_along(by_position, p.axes[plane * 3 + 2], slopes.z * step * p.layers);
    }
    return by_position;
}

// Sixteen rows of features' gradient into the planes; adds to the gradients of the ray.
OMNI_DEVICE void scatter_rows(const RenderParams& p, const BackwardRay& r, const RayLine& line, i64 ray, int row, RayLine& sums) {
    float* grid_grad = p.grid_grad + ray / p.rays_per_grid * identity_numbers(p);
    for (int s = row + lane() / GROUP; s < row + 16; s += LANES / GROUP) {
        if (r.share[s] == 0.0f && r.grad[s] == 0.0f) continue;
        const float depth = r.samples.depth[s];
        const float3 by_position = scatter(p, grid_of(p, ray), grid_grad, RayLine::point(line, depth), r.features + s * ROW);
        sums.origin.x += by_position.x, sums.origin.y += by_position.y, sums.origin.z += by_position.z;
        sums.direction.x += by_position.x * depth, sums.direction.y += by_position.y * depth, sums.direction.z += by_position.z * depth;
    }
}

OMNI_DEVICE void store_ray_gradient(const RenderParams& p, i64 ray, const RayLine& sums) {
    const float value[6] = {warp_sum(sums.origin.x), warp_sum(sums.origin.y), warp_sum(sums.origin.z),
                            warp_sum(sums.direction.x), warp_sum(sums.direction.y), warp_sum(sums.direction.z)};
    if (lane()) return;
    for (int a = 0; a < 3; a++) p.origins_grad[ray * 3 + a] = value[a], p.directions_grad[ray * 3 + a] = value[3 + a];
}

// What passes with the ray's shares and densities' gradients alone: second layer's biases.
OMNI_DEVICE void add_biases(const BackwardRay& r, Sums& sums, int num) {
    float total = 0.0f;
    for (int s = lane(); s < num; s += LANES) total += r.share[s], sums.density_bias += r.grad[s];
    if (!LINEAR) return;
    total = warp_sum(total);
    for (int o = lane(); o < O; o += LANES) r.bias2[o] += r.features_grad[o] * total;
}

// One ray for every warp (`ray` beyond the last for none); all threads of the block.
OMNI_DEVICE void backward_rays(const RenderParams& p, const Weights& w, const BackwardRay& r, const BackwardRay& first, int warp_floats,
                               i64 ray, Sums& sums) {
    const int num = p.coarse;
    const bool valid = ray < p.num_rays;
    RayLine line = {}, ray_sums = {};
    if (valid) {
        line = load_ray(p, ray);
        prepare_ray(p, r, line, ray, num);
        colour_products(w, r, num);
        density_gradient(p, r, ray, num);
        add_biases(r, sums, num);
    } else {
        for (int s = lane(); s < up_to(num, 16); s += LANES) r.share[s] = r.grad[s] = 0.0f;
        for (int i = lane(); i < up_to(num, 16) * ROW; i += LANES) r.features[i] = 0.0f;
        for (int o = lane(); o < O; o += LANES) r.features_grad[o] = 0.0f;
        for (int h = lane(); h < H; h += LANES) r.composite[h] = 0.0f;
        __syncwarp();
    }
    for (int row = 0; row < num; row += 16) {
        const int s = row + lane() % 16;
        const bool active = warp_any(r.share[s] != 0.0f || r.grad[s] != 0.0f);
        float point[CT][4];
        clear_tiles<CT>(point);
        if (active) {
            backward_rows(w, r, row, point);
        } else {
            for (int i = lane(); i < 16 * UNIT_ROW; i += LANES) r.units[i] = 0.0f;
            if (!LINEAR) {
                for (int i = lane(); i < 16 * UNIT_ROW; i += LANES) r.hidden[i] = 0.0f;
                for (int i = lane(); i < 16 * COLOUR_ROW; i += LANES) r.colours[i] = 0.0f;
            }
        }
        __syncthreads();
        add_weights(first, warp_floats, sums, row);
        if (LINEAR && row == 0) add_composites(first, warp_floats, sums);
        __syncthreads();
        if (!active) continue;
        store_tile<CT>(r.features + row * ROW, ROW, point);
        __syncwarp();
        scatter_rows(p, r, line, ray, row, ray_sums);
        __syncwarp();
    }
    if (valid && p.origins_grad) store_ray_gradient(p, ray, ray_sums);
}

// The block's sums into its row of `partial`.
OMNI_DEVICE void store_sums(const RenderParams& p, const BackwardRay& r, const Sums& sums) {
    float* to = p.partial + i64(blockIdx.x) * Partial::SIZE;
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int own = 0; own < OWN_TILES; own++) {
        const int tile = warp() + own * WARPS;
        if (tile >= HIDDEN_TILES) continue;
        for (int i = 0; i < 4; i++) {
            const int h = tile * 16 + g + i / 2 * 8, column = 2 * t + i % 2;
#pragma unroll
            for (int k = 0; k < CT; k++) to[Partial::W1 + h * C + k * 8 + column] = sums.w1[own][k][i];
            if constexpr (!LINEAR)
                for (int k = 0; k < OT; k++) to[Partial::W2 + (k * 8 + column) * H + h] = sums.w2_tiles[own][k][i];
        }
    }
    if constexpr (LINEAR)
#pragma unroll
        for (int k = 0; k < OWN_WEIGHTS; k++)
            if (int(threadIdx.x) + k * THREADS < H * O) to[Partial::W2 + threadIdx.x + k * THREADS] = sums.w2[k];
    for (int h = lane(); h < H; h += LANES) {
        to[Partial::B1 + warp() * H + h] = r.bias1[h];
        to[Partial::DENSITY_ROW + warp() * H + h] = r.density_row[h];
    }
    for (int o = lane(); o < O; o += LANES) to[Partial::B2 + warp() * O + o] = r.bias2[o];
    const float density_bias = warp_sum(sums.density_bias);
    if (lane() == 0) to[Partial::DENSITY_BIAS + warp()] = density_bias;
}

}  // namespace omni

// p.coarse: all samples of a ray.
OMNI_KERNEL(omni::THREADS) volume_render_backward(OMNI_PARAMS(omni::RenderParams, p)) {
    using namespace omni;
    OMNI_SHARED(shared);
    Arena arena = {reinterpret_cast<float*>(shared)};
    const Weights weights = load_weights(arena, p);
    const BackwardRay first = make_backward_ray(arena, p.coarse);
    BackwardRay ray = first;
    const int warp_floats = int(arena.next - first.features);
    for (int i = 1; i < WARPS; i++) {
        const BackwardRay own = make_backward_ray(arena, p.coarse);
        if (i == warp()) ray = own;
    }
    OMNI_SHARED_USED(arena.next - reinterpret_cast<float*>(shared));
    Sums sums = {};
    for (int h = lane(); h < H; h += LANES) ray.bias1[h] = ray.density_row[h] = 0.0f;
    for (int o = lane(); o < O; o += LANES) ray.bias2[o] = 0.0f;
    __syncthreads();
    for (i64 i = i64(blockIdx.x) * WARPS; i < p.num_rays; i += i64(gridDim.x) * WARPS)
        backward_rays(p, weights, ray, first, warp_floats, i + warp(), sums);
    store_sums(p, ray, sums);
}
