// The fused volume renderer as PyTorch operators: checks, layouts, threads, choice of the instruction set.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "plane_packing.h"
#include "volume_render.h"

namespace omni {
namespace {

using at::Tensor;

constexpr int64_t MOST_WORKERS = 64;  // on one identity in the backward pass
constexpr int64_t SLOTS_EACH = 16;    // blocks of rays that a worker does before all workers add up the planes' gradient
constexpr int64_t RAYS_AT_A_TIME = 32;
constexpr int64_t MOST_PACKED = int64_t(1) << 25;   // numbers in the packed planes of all threads, where each has its own

bool supported(const char* name) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!std::strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#endif
    return !std::strcmp(name, "baseline");
}

// The best instruction set of this machine, or the lesser one that OMNIHEAD_ISA names.
const Kernels& kernels() {
    static const Kernels* chosen = [] {
        const char* wanted = std::getenv("OMNIHEAD_ISA");
        for (const Kernels* k : {kernels_avx512(), kernels_avx2(), kernels_baseline()})
            if (k && supported(k->name) && (!wanted || !*wanted || !std::strcmp(wanted, k->name))) return k;
        return kernels_baseline();
    }();
    return *chosen;
}

Tensor dense(const Tensor& t, const char* name, at::IntArrayRef shape) {
    TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == at::kFloat, name, " must be a float32 tensor on the CPU");
    TORCH_CHECK(t.sizes() == shape, name, " must have shape ", shape, ", got ", t.sizes());
    return t.contiguous();
}

const float* data_or_null(const std::optional<Tensor>& t) { return t ? t->const_data_ptr<float>() : nullptr; }

std::optional<Tensor> dense(const std::optional<Tensor>& t, const char* name, at::IntArrayRef shape) {
    return t ? std::optional<Tensor>(dense(*t, name, shape)) : std::nullopt;
}

// The field's tensors in the layout of the kernels, but for planes that are to be packed, which follow one by one; holds the
// memory that `field` points to. `direct`: the planes are read as they are.
struct PackedField {
    Tensor planes, w1, b1, w1t, density_row, w2, b2, w2t;
    bool direct;
    Field field;
};

// Whether every thread takes whole identities, with memory of its own where their planes are packed, so that threads never
// wait for one another; otherwise all work on one identity at a time.
bool thread_takes_identity(const PackedField& p) {
    const int64_t threads = at::get_num_threads();
    return p.planes.size(0) >= threads && (p.direct || threads * PlaneSizes(p.planes).packed() <= MOST_PACKED);
}

// Steps of planes [N, 3, C, D, H, W] packed as pack_planes does, with C padded to `channels`.
std::vector<int64_t> packed_strides(const Tensor& planes, int64_t channels) {
    const int64_t column = channels, row = planes.size(5) * column, layer = planes.size(4) * row, plane = planes.size(3) * layer;
    return {3 * plane, plane, 1, layer, row, column};
}

Tensor padded_copy(const Tensor& t, int64_t rows, int64_t columns) {
    Tensor out = at::zeros({rows, columns}, t.options());
    out.narrow(0, 0, t.size(0)).narrow(1, 0, t.size(1)).copy_(t);
    return out;
}

PackedField pack_field(const Tensor& planes, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                       double box_warp, at::IntArrayRef axes, bool trilinear, int64_t activation, double crop_limit) {
    TORCH_CHECK(planes.dim() == 6 && planes.size(1) == 3, "planes must be [N, 3, C, D, H, W], got ", planes.sizes());
    TORCH_CHECK(w1.dim() == 2 && w2.dim() == 2 && w2.size(0) >= 2,
                "decoder weights must be [hidden, C] and [1 + colours, hidden]");
    TORCH_CHECK(axes.size() == 9 && activation >= 0 && activation <= 2, "axes must be nine numbers, activation 0 to 2");
    TORCH_CHECK(trilinear || planes.size(3) == 1, "planes without trilinear lookup have one layer, got ", planes.size(3));
    const int64_t hidden = w1.size(0), channels = planes.size(2), colours = w2.size(0) - 1;
    const int64_t H = padded(hidden), C = padded(channels), O = padded(colours);
    TORCH_CHECK(3 * C * planes.size(3) * planes.size(4) * planes.size(5) < std::numeric_limits<int32_t>::max(),
                "planes are too large: ", planes.sizes());
    PackedField p;
    p.direct = cells_together(planes);
    p.planes = p.direct ? planes : dense(planes, "planes", planes.sizes());
    p.w1t = padded_copy(dense(w1, "weight1", {hidden, channels}), H, C);
    p.w1 = p.w1t.t().contiguous();
    p.b1 = padded_copy(dense(b1, "bias1", {hidden}).unsqueeze(0), 1, H);
    const Tensor second = dense(w2, "weight2", {1 + colours, hidden}), bias = dense(b2, "bias2", {1 + colours});
    p.density_row = padded_copy(second.narrow(0, 0, 1), 1, H);
    p.w2t = padded_copy(second.narrow(0, 1, colours), O, H);
    p.w2 = p.w2t.t().contiguous();
    p.b2 = padded_copy(bias.narrow(0, 1, colours).unsqueeze(0), 1, O);
    Field& f = p.field;
    f.grid = nullptr, f.first_grid = 0;
    const std::vector<int64_t> steps = p.direct ? planes.strides().vec() : packed_strides(planes, C);
    f.grid_step = steps[0], f.plane_step = int(steps[1]), f.layer_step = int(steps[3]), f.row_step = int(steps[4]);
    f.column_step = int(steps[5]);
    f.channels = int(C), f.hidden = int(H), f.colours = int(O), f.colours_used = int(colours);
    f.depth = int(planes.size(3)), f.height = int(planes.size(4)), f.width = int(planes.size(5));
    for (int i = 0; i < 9; i++) {
        TORCH_CHECK(axes[i] >= 0 && axes[i] < 3, "axes must be 0, 1 or 2");
        f.axes[i / 3][i % 3] = int(axes[i]);
    }
    f.trilinear = trilinear, f.scale = float(2 / box_warp), f.crop_limit = float(crop_limit), f.activation = int(activation);
    f.w1 = p.w1.const_data_ptr<float>(), f.b1 = p.b1.const_data_ptr<float>(), f.w1t = p.w1t.const_data_ptr<float>();
    f.density_row = p.density_row.const_data_ptr<float>(), f.density_bias = bias.const_data_ptr<float>()[0];
    f.w2 = p.w2.const_data_ptr<float>(), f.b2 = p.b2.const_data_ptr<float>(), f.w2t = p.w2t.const_data_ptr<float>();
    return p;
}

// Zeroed scratch memory that begins at a cache line.
struct Scratch {
    std::vector<float> memory;
    explicit Scratch(int64_t floats) : memory(floats + PAD) {}
    float* data() { return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / sizeof(float); }
};

// Run work(field, identity, spare) over the identities, `field` with the planes of that one, `spare` memory for as many packed
// numbers (if wanted, and only where planes are packed). Where a thread takes whole identities, all that runs inside is done by
// that thread alone.
template <typename Work>
void for_identities(const PackedField& p, bool wants_spare, const Work& work) {
    const PlaneSizes sizes(p.planes);
    const int64_t grids = p.planes.size(0);
    std::atomic<int64_t> next{0};
    const auto run = [&](int64_t, int64_t) {
        const Buffer packed(p.direct ? 0 : sizes.packed()), spare(wants_spare && !p.direct ? sizes.packed() : 0);
        Field field = p.field;
        field.grid = packed.data;
        while ((field.first_grid = next++) < grids) {
            const float* planes = p.planes.const_data_ptr<float>() + field.first_grid * p.planes.stride(0);
            if (p.direct) field.grid = planes;
            else pack_planes(sizes, planes, packed.data);
            work(field, field.first_grid, spare.data);
        }
    };
    if (thread_takes_identity(p)) at::parallel_for(0, at::get_num_threads(), 1, run);
    else run(0, 1);
}

// Run work(first, end, scratch) over items [begin, num), handed out in small pieces to whichever thread is free.
template <typename Work>
void for_pieces(int64_t begin, int64_t num, int64_t piece, int64_t scratch_floats, const Work& work) {
    std::atomic<int64_t> next{begin};
    const int64_t workers = std::min<int64_t>(at::get_num_threads(), (num - begin + piece - 1) / piece);
    at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
        Scratch scratch(scratch_floats);
        for (int64_t first; (first = next.fetch_add(piece)) < num;) work(first, std::min(first + piece, num), scratch.data());
    });
}

struct CheckedRays {
    Tensor origins, directions, depths;
    std::optional<Tensor> noise[3];
    Rays rays;
};

CheckedRays check_rays(const Tensor& origins, const Tensor& directions, const Tensor& planes, int64_t coarse, int64_t fine,
                       bool white_back) {
    TORCH_CHECK(origins.dim() == 3, "origins must be [N, M, 3], got ", origins.sizes());
    const int64_t n = origins.size(0), m = origins.size(1), grids = planes.size(0);
    TORCH_CHECK(grids == n || grids == 1, "planes are of ", grids, " identities, rays of ", n);
    TORCH_CHECK(coarse >= 2 && (fine == 0 || coarse >= 4) && coarse + fine < 1 << 16,
                "needs at least 4 coarse samples, got ", coarse);
    CheckedRays c;
    c.origins = dense(origins, "origins", {n, m, 3});
    c.directions = dense(directions, "directions", {n, m, 3});
    c.rays = {};
    c.rays.per_grid = std::max<int64_t>(grids == 1 ? n * m : m, 1);
    c.rays.coarse = int(coarse), c.rays.fine = int(fine), c.rays.white_back = white_back;
    c.rays.origins = c.origins.const_data_ptr<float>(), c.rays.directions = c.directions.const_data_ptr<float>();
    return c;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> volume_render(
    const Tensor& planes, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2, const Tensor& origins,
    const Tensor& directions, const Tensor& depths, const std::optional<Tensor>& fine_noise,
    const std::optional<Tensor>& coarse_density_noise, const std::optional<Tensor>& fine_density_noise, double box_warp,
    at::IntArrayRef axes, bool trilinear, int64_t activation, double crop_limit, bool white_back) {
    const PackedField p = pack_field(planes, w1, b1, w2, b2, box_warp, axes, trilinear, activation, crop_limit);
    TORCH_CHECK(depths.dim() == 3, "depths must be [N, M, S], got ", depths.sizes());
    const int64_t coarse = depths.size(2), fine = fine_noise ? fine_noise->size(-1) : 0;
    CheckedRays c = check_rays(origins, directions, planes, coarse, fine, white_back);
    const int64_t n = origins.size(0), m = origins.size(1);
    c.depths = dense(depths, "depths", {n, m, coarse});
    c.noise[0] = dense(fine_noise, "fine_noise", {n, m, fine});
    c.noise[1] = dense(coarse_density_noise, "coarse_density_noise", {n, m, coarse});
    c.noise[2] = dense(fine_density_noise, "fine_density_noise", {n, m, fine});
    c.rays.depths = c.depths.const_data_ptr<float>();
    c.rays.fine_noise = data_or_null(c.noise[0]);
    c.rays.coarse_density_noise = data_or_null(c.noise[1]), c.rays.fine_density_noise = data_or_null(c.noise[2]);
    const auto options = planes.options();
    Tensor features = at::empty({n, m, w2.size(0) - 1}, options), depth = at::empty({n, m, 1}, options);
    Tensor opacity = at::empty({n, m, 1}, options);
    Tensor sorted_depths = at::empty({n, m, coarse + fine}, options), sorted_density = at::empty({n, m, coarse + fine}, options);
    const Outputs out = {features.data_ptr<float>(), depth.data_ptr<float>(), opacity.data_ptr<float>(),
                         sorted_depths.data_ptr<float>(), sorted_density.data_ptr<float>()};
    for_identities(p, false, [&](const Field& field, int64_t grid, float*) {
        const int64_t begin = grid * c.rays.per_grid, end = std::min(begin + c.rays.per_grid, n * m);
        const int64_t scratch_floats = kernels().forward_scratch(field, c.rays);
        for_pieces(begin, end, RAYS_AT_A_TIME, scratch_floats, [&](int64_t i, int64_t j, float* scratch) {
            kernels().forward(field, c.rays, out, i, j, scratch);
        });
    });
    return {features, depth, opacity, sorted_depths, sorted_density};
}

// What one worker of the backward pass adds up apart from the others.
struct Worker {
    Tensor w1, b1, density_row, density_bias, w2, b2;

    explicit Worker(const PackedField& p)
        : w1(at::zeros_like(p.w1)), b1(at::zeros_like(p.b1)), density_row(at::zeros_like(p.density_row)),
          density_bias(at::zeros({1}, p.b1.options())), w2(at::zeros_like(p.w2)), b2(at::zeros_like(p.b2)) {}

    Gradients pointers(const Gradients& rays) const {
        return {nullptr, nullptr, w1.data_ptr<float>(), b1.data_ptr<float>(), density_row.data_ptr<float>(),
                density_bias.data_ptr<float>(), w2.data_ptr<float>(), b2.data_ptr<float>(), rays.origins, rays.directions, rays.decoder};
    }

    void add(const Worker& other) {
        w1 += other.w1, b1 += other.b1, density_row += other.density_row, density_bias += other.density_bias;
        w2 += other.w2, b2 += other.b2;
    }
};

// Slots for `num` blocks of rays, and the memory they point to.
struct Slots {
    std::vector<Slot> slots;
    std::vector<float> memory;

    Slots(int64_t num, int64_t points, int64_t channels) : slots(num), memory(num * points * (3 + channels) + PAD) {
        float* next = memory.data();
        for (Slot& slot : slots) {
            for (float*& position : slot.position) position = next, next += points;
            slot.gradient = next, next += points * channels;
        }
    }
};

// Gradients of rays [begin, end), all of one identity, with `num` workers that share its `grid`. By turns they compute the
// gradients of some blocks of rays, each worker those of its own, and add them to the grid, each worker in cells and channels
// of its own. Who does what is the same however the threads are scheduled, so sums are repeatable, and a cell's do not depend
// on the number of workers.
void backward_together(const Field& field, const Rays& rays, const SavedSamples& saved, const Gradients& ray_grads,
                       const Worker* workers, int64_t num, float* grid, int64_t begin, int64_t end) {
    const Kernels& k = kernels();
    const int64_t block = k.block_rays(field, rays), points = k.slot_points(field, rays), each = SLOTS_EACH * block;
    Slots own(num * SLOTS_EACH, points, field.channels);
    std::vector<Scratch> scratch;
    for (int64_t i = 0; i < num; i++) scratch.emplace_back(k.backward_scratch(field, rays));
    // Parts of the grid: planes, lines of memory (16 channels), and, for many workers, bands of rows.
    const int64_t lines = field.channels / PAD, bands = std::max<int64_t>(1, num / (3 * lines)), parts = 3 * lines * bands;
    for (; begin < end; begin += num * each) {
        for (Slot& slot : own.slots) slot.points = 0;
        at::parallel_for(0, num, 1, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; i++) {
                Gradients out = workers[i].pointers(ray_grads);
                out.slots = &own.slots[i * SLOTS_EACH];
                k.backward(field, rays, saved, out, std::min(begin + i * each, end), std::min(begin + (i + 1) * each, end),
                           scratch[i].data());
            }
        });
        at::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
            Scratch room(k.scatter_scratch(field, int(points)));
            for (int64_t i = from; i < to; i++) {
                const int64_t plane = i / bands / lines, line = i / bands % lines, band = i % bands;
                for (const Slot& slot : own.slots)
                    if (slot.points)
                        k.scatter(field, slot, int(plane), int(field.height * band / bands), int(field.height * (band + 1) / bands),
                                  int(line * PAD), int((line + 1) * PAD), grid, room.data());
            }
        });
    }
}

// The same by one worker or several; `grid`, of `size` numbers, is overwritten.
void backward_identity(const Field& field, const Rays& rays, const SavedSamples& saved, const Gradients& ray_grads,
                       const Worker* workers, int64_t num, int64_t size, float* grid, int64_t begin, int64_t end) {
    at::parallel_for(0, size, 1 << 18, [&](int64_t from, int64_t to) { std::memset(grid + from, 0, (to - from) * sizeof(float)); });
    if (num > 1) return backward_together(field, rays, saved, ray_grads, workers, num, grid, begin, end);
    Scratch scratch(kernels().backward_scratch(field, rays));
    Gradients out = workers[0].pointers(ray_grads);
    out.grid = grid;
    kernels().backward(field, rays, saved, out, begin, end, scratch.data());
}

using RenderGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

RenderGradients volume_render_backward(
    const Tensor& planes, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2, const Tensor& origins,
    const Tensor& directions, const Tensor& sorted_depths, const Tensor& sorted_density, const Tensor& features_grad,
    const Tensor& depth_grad, const Tensor& opacity_grad, double box_warp, at::IntArrayRef axes, bool trilinear,
    int64_t activation, double crop_limit, bool white_back, bool rays_grad, bool decoder_grad) {
    const PackedField p = pack_field(planes, w1, b1, w2, b2, box_warp, axes, trilinear, activation, crop_limit);
    const int64_t n = origins.size(0), m = origins.size(1), samples = sorted_depths.size(2), num = n * m;
    const CheckedRays c = check_rays(origins, directions, planes, samples, 0, white_back);
    const Tensor held[] = {dense(sorted_depths, "sorted_depths", {n, m, samples}),
                           dense(sorted_density, "sorted_density", {n, m, samples}),
                           dense(features_grad, "features_grad", {n, m, w2.size(0) - 1}),
                           dense(depth_grad, "depth_grad", {n, m, 1}), dense(opacity_grad, "opacity_grad", {n, m, 1})};
    const SavedSamples saved = {held[0].const_data_ptr<float>(), held[1].const_data_ptr<float>(), held[2].const_data_ptr<float>(),
                                held[3].const_data_ptr<float>(), held[4].const_data_ptr<float>()};
    Tensor origins_grad = at::zeros_like(c.origins), directions_grad = at::zeros_like(c.directions);
    Gradients ray_grads = {};
    ray_grads.decoder = decoder_grad;
    if (rays_grad) ray_grads.origins = origins_grad.data_ptr<float>(), ray_grads.directions = directions_grad.data_ptr<float>();
    const PlaneSizes sizes(planes);
    Tensor planes_grad = p.direct ? at::empty_like(planes) : at::empty(planes.sizes(), planes.options());
    float* planes_grad_data = planes_grad.data_ptr<float>();
    if (p.direct) advise_large_pages(planes_grad_data, planes_grad.nbytes());
    if (!num) planes_grad.zero_();
    // Sums for every identity where a thread takes whole ones: which thread takes which is left to chance.
    const bool whole = thread_takes_identity(p);
    const int64_t together = whole ? 1 : std::min<int64_t>(at::get_num_threads(), MOST_WORKERS);
    std::vector<Worker> workers;
    do workers.emplace_back(p);
    while (int64_t(workers.size()) < (whole ? planes.size(0) : together));
    if (num) for_identities(p, true, [&](const Field& field, int64_t grid, float* packed_sum) {
        const int64_t begin = grid * c.rays.per_grid, end = begin + c.rays.per_grid;
        float* target = planes_grad_data + grid * sizes.planar();
        backward_identity(field, c.rays, saved, ray_grads, &workers[whole ? grid : 0], together, sizes.packed(),
                          p.direct ? target : packed_sum, begin, end);
        if (!p.direct) unpack_planes(sizes, packed_sum, target);
    });
    if (!p.direct && !planes.is_contiguous()) planes_grad = at::empty_like(planes).copy_(planes_grad);
    Worker& sums = workers[0];
    for (size_t i = 1; i < workers.size(); i++) sums.add(workers[i]);
    const int64_t hidden = w1.size(0), colours = w2.size(0) - 1;
    Tensor w2_grad = at::cat({sums.density_row, sums.w2.t().narrow(0, 0, colours)}).narrow(1, 0, hidden).contiguous();
    Tensor b2_grad = at::cat({sums.density_bias, sums.b2[0].narrow(0, 0, colours)});
    return {planes_grad, sums.w1.t().narrow(0, 0, hidden).narrow(1, 0, sizes.channels).contiguous(),
            sums.b1[0].narrow(0, 0, hidden).contiguous(), w2_grad, b2_grad, origins_grad, directions_grad};
}

// Density [N, M, 1] and, where wanted, features [N, M, colours] at points [N, M, 3].
std::tuple<Tensor, Tensor> query(const Tensor& planes, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                                 const Tensor& points, double box_warp, at::IntArrayRef axes, bool trilinear, int64_t activation,
                                 bool wants_features) {
    const double no_crop = std::numeric_limits<double>::infinity();
    const PackedField p = pack_field(planes, w1, b1, w2, b2, box_warp, axes, trilinear, activation, no_crop);
    TORCH_CHECK(points.dim() == 3 && (planes.size(0) == points.size(0) || planes.size(0) == 1), "points must be [N, M, 3]");
    const int64_t n = points.size(0), m = points.size(1);
    const Tensor where = dense(points, "points", {n, m, 3});
    Tensor density = at::empty({n, m, 1}, planes.options());
    Tensor features = wants_features ? at::empty({n, m, w2.size(0) - 1}, planes.options()) : Tensor();
    const int64_t per_grid = std::max<int64_t>(planes.size(0) == 1 ? n * m : m, 1);
    for_identities(p, false, [&](const Field& field, int64_t grid, float*) {
        const int64_t begin = grid * per_grid, end = std::min(begin + per_grid, n * m);
        for_pieces(begin, end, 1024, kernels().query_scratch(field), [&](int64_t i, int64_t j, float* scratch) {
            kernels().query(field, where.const_data_ptr<float>(), per_grid, density.data_ptr<float>(),
                            wants_features ? features.data_ptr<float>() : nullptr, i, j, scratch);
        });
    });
    return {density, features};
}

std::tuple<Tensor, Tensor> plane_query(const Tensor& planes, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                                       const Tensor& b2, const Tensor& points, double box_warp, at::IntArrayRef axes,
                                       bool trilinear, int64_t activation) {
    return query(planes, w1, b1, w2, b2, points, box_warp, axes, trilinear, activation, true);
}

Tensor plane_density(const Tensor& planes, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                     const Tensor& points, double box_warp, at::IntArrayRef axes, bool trilinear) {
    return std::get<0>(query(planes, w1, b1, w2, b2, points, box_warp, axes, trilinear, ACTIVATION_NONE, false));
}

std::string instruction_set() { return kernels().name; }

}  // namespace
}  // namespace omni

// The other operators' signatures are in schemas.py: CUDA implements them too.
TORCH_LIBRARY(omnihead, m) {
    m.def("instruction_set() -> str", omni::instruction_set);
}

TORCH_LIBRARY_IMPL(omnihead, CPU, m) {
    m.impl("volume_render", omni::volume_render);
    m.impl("volume_render_backward", omni::volume_render_backward);
    m.impl("plane_query", omni::plane_query);
    m.impl("plane_density", omni::plane_density);
}
