// emp_kernels._cpu: the CPU kernels for Python. The caller has checked types, shapes and devices,
// except for the plain_ functions; values inside the tensors are checked here, before anything is
// written, and errors are returned instead of results.
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "cpu/contrastive.h"
#include "cpu/gathering.h"
#include "cpu/row_parts.h"
#include "cpu/row_terms.h"
#include "cpu/scoring.h"
#include "cpu/selection.h"
#include "cpu/shuffle.h"
#include "cpu/state.h"
#include "cpu/systematic.h"
#include "cpu/targets.h"
#include "cpu/threads.h"
#include "cpu/tokens.h"
#include "draws.h"
#include "gathering.h"
#include "loss.h"
#include "plain.h"
#include "pruning.h"
#include "reserve.h"
#include "results.h"
#include "scoring.h"
#include "tensors.h"
#include "terms.h"

namespace bindings {

// m, u, t and z_y, (4, rows). Labels may have any value.
py::object row_sums(const Tensor& z, const Dense& y, Ignored ignored, int threads) {
  const emp::Logits logits = logits_of(z);
  const int64_t rows = logits.rows;
  Result<float> sums({4, rows});
  {
    py::gil_scoped_release released;
    float* const m = sums;
    emp::row_sums(logits, labels_of(y, ignored), {m, m + rows, m + 2 * rows, m + 3 * rows},
                  threads);
  }
  return sums.tensor();
}

// The first row with an invalid label, or -1.
int64_t first_bad_label(const Dense& labels, Ignored ignored, int64_t classes) {
  py::gil_scoped_release released;
  return emp::first_bad_label(labels_of(labels, ignored), labels.elements(), classes);
}

// Adds a piece of columns to parts (4, rows). The labels' ranges were checked with first_bad_label.
void add_row_parts(const Tensor& piece, const Dense& labels, int64_t first_column,
                   const Written& parts, int threads) {
  py::gil_scoped_release released;
  emp::add_row_parts(logits_of(piece), labels_of(labels, {}), first_column, parts_of(parts),
                     threads);
}

// Scores of parts (4, rows), of the shape of `like`.
py::object scores_of_parts(const Tensor& parts, const Tensor& like, float beta) {
  Result<float> score(like), loss(like), entropy(like), lse(like);
  {
    py::gil_scoped_release released;
    emp::scores_of_parts(parts_of(parts), parts.size(1), beta, {score, loss, entropy, lse});
  }
  return named_tuple(Scores, score, loss, entropy, lse);
}

py::object select(const Dense& scores, int64_t count, int threads) {
  Result<int64_t> out(count);
  {
    py::gil_scoped_release released;
    emp::select(scores.data<const float>(), scores.size(0), count, out, threads);
  }
  return out.tensor();
}

// `total` is the sum of counts.
py::object select_rows(const Dense& scores, const Dense& counts, int64_t total, int threads) {
  Result<int64_t> out(total);
  {
    py::gil_scoped_release released;
    emp::select_rows(scores.data<const float>(), scores.size(0), scores.size(1),
                     counts.data<const int64_t>(), out, threads);
  }
  return out.tensor();
}

py::object shuffle(const Dense& ids, uint64_t seed, int threads) {
  Result<int64_t> out(ids);
  {
    py::gil_scoped_release released;
    emp::shuffle(ids.data<const int64_t>(), ids.size(0), seed, out, threads);
  }
  return out.tensor();
}

// For places in [0, n).
py::object shuffled_at(int64_t n, uint64_t seed, const Dense& places, int threads) {
  Result<int64_t> out(places);
  {
    py::gil_scoped_release released;
    emp::shuffled_at(n, seed, places.data<const int64_t>(), places.size(0), out, threads);
  }
  return out.tensor();
}

void systematic(const Dense& units, const Dense& order, int64_t left, int64_t whole, int64_t first,
                const Dense& drawn) {
  py::gil_scoped_release released;
  emp::systematic(units.data<const int64_t>(), order.data<const int64_t>(), units.size(0), left,
                  whole, first, drawn.data<bool>());
}

// `fields` are the scores' (rows,) score, loss and entropy. Returns the position of the first
// invalid id, before anything is written, or -1.
int64_t update_state(const emp::State& state, const Dense& ids, const Dense& score,
                     const Dense& loss, const Dense& entropy) {
  const int64_t* const id = ids.data<const int64_t>();
  const int64_t rows = ids.size(0);
  py::gil_scoped_release released;
  const int64_t bad = emp::first_bad_index(id, rows, state.size);
  if (bad >= 0) return bad;
  const ScoreField scores(score, state), losses(loss, state), entropies(entropy, state);
  return emp::update_state(state, {scores, losses, entropies, id, rows}, 1);
}

// Writes ids to log (n,) int32 or int64 from `start` on, where there is room for them. The first
// position of an id outside [0, size), or -1.
int64_t log_ids(const Dense& ids, const Written& log, int64_t start, int64_t size) {
  const emp::Labels from = labels_of(ids, {});
  const int64_t rows = ids.size(0);
  if (log.dtype().bits == 32) return emp::log_ids(from, rows, size, log.data<int32_t>() + start);
  return emp::log_ids(from, rows, size, log.data<int64_t>() + start);
}

// Adds a tile (rows, columns) to the sums of its rows or of its columns.
void add_tile(const Tensor& tile, const Written& sums, bool columns, int threads) {
  py::gil_scoped_release released;
  (columns ? emp::add_tile_columns : emp::add_tile_rows)(
      {tile.data<const float>(), tile.size(0), tile.size(1), tile.stride(0)}, sums_of(sums),
      threads);
}

}  // namespace bindings

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of emp_kernels";
  bindings::reserve.hold();
  module.def("use_torch", &bindings::use_torch,
             "torch.Tensor, and what makes and reads tensors: torch._C._from_dlpack, "
             "torch._C._to_dlpack, and torch.Tensor.__dlpack_c_exchange_api__ or None.");
  module.def("use_settings", &bindings::use_settings,
             "torch.get_num_threads, torch.is_grad_enabled, the variables of "
             "torch.autograd.forward_ad, torch._C's _is_tracing, _len_torch_dispatch_stack and "
             "_current_graph_task_id, and tracing.recording.");
  module.def("use_results", &bindings::use_results, "Scores, SampleStatistics and Selection.");
  module.def("score", &bindings::score);
  module.attr("plain_score") = bindings::plain_function<bindings::plain_score, 4>("plain_score");
  module.def("first_bad_label", &bindings::first_bad_label);
  module.def("add_row_parts", &bindings::add_row_parts);
  module.def("scores_of_parts", &bindings::scores_of_parts);
  module.def("sample_statistics", &bindings::sample_statistics);
  module.attr("plain_sample_statistics") =
      bindings::plain_function<bindings::plain_sample_statistics, 3>("plain_sample_statistics");
  module.def("row_sums", &bindings::row_sums);
  module.def("score_and_select", &bindings::score_and_select);
  module.attr("plain_score_and_select") =
      bindings::plain_function<bindings::plain_score_and_select, 8>("plain_score_and_select");
  module.def("select", &bindings::select);
  module.attr("plain_select") = bindings::plain_function<bindings::plain_select, 2>("plain_select");
  module.def("select_rows", &bindings::select_rows);
  module.def("shuffle", &bindings::shuffle);
  module.def("shuffled_at", &bindings::shuffled_at);
  module.def("systematic", &bindings::systematic);
  module.def("draws", &bindings::draws);
  module.def("gather", &bindings::gather);
  module.attr("plain_gather") = bindings::plain_function<bindings::plain_gather, 2>("plain_gather");
  module.def("update_state", &bindings::update_state);
  module.def("log_ids", &bindings::log_ids);
  module.def("cross_entropy", &bindings::cross_entropy);
  module.attr("plain_cross_entropy") =
      bindings::plain_function<bindings::plain_cross_entropy, 9>("plain_cross_entropy");
  module.def("cross_entropy_backward", &bindings::cross_entropy_backward);
  module.def("row_terms", &bindings::row_terms);
  module.def("row_terms_backward", &bindings::row_terms_backward);
  module.def("add_tile", &bindings::add_tile);
  module.def("share_openmp_of", &emp::share_openmp_of,
             "Threads come from the OpenMP runtime of this loaded library; False: it has none.");
  module.def("mark_forked", &emp::mark_forked,
             "This process was forked before it loaded the library: one thread from now on.");
  module.def(
      "simd_level", [] { return emp::target_name(emp::target()); },
      "The instruction set in use: avx512, avx2, portable or neon.");
  module.def(
      "simd_levels",
      [] {
        pybind11::list names;
        for (const emp::Target target : emp::kTargets)
          if (emp::target_available(target)) names.append(emp::target_name(target));
        return names;
      },
      "The instruction sets of this processor that EMP_SIMD may name, best first.");
}
