"""The C++ of kernels.py, held by a Python file because those are what travels with a model."""

SOURCE = r"""
// Letters: B images, N tokens of the stream, D channels, M tokens of the full stream, K of the new one,
// A tokens that may leave, P that may be their partners, T tokens that stay, of all images.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <cmath>
#include <torch/library.h>

using at::Tensor;
using Maybe = std::optional<Tensor>;

// Gates of any author may give views, other types, or one row for all images.
Tensor dense(const Tensor& tensor, at::ScalarType type, at::IntArrayRef shape) {
  return tensor.to(type).expand(shape).contiguous();
}
Maybe dense(const Maybe& tensor, at::ScalarType type, at::IntArrayRef shape) {
  return tensor.has_value() ? Maybe(dense(*tensor, type, shape)) : tensor;
}

template <typename T>
const T* data(const Maybe& tensor) { return tensor.has_value() ? tensor->const_data_ptr<T>() : nullptr; }

// Tokens (B, N, D) from the place `start` on, every second one, as directions of length one: (B, ., D).
template <typename S>
Tensor directions(const Tensor& tokens, int64_t start) {
  const int64_t B = tokens.size(0), N = tokens.size(1), D = tokens.size(2);
  const int64_t count = std::max<int64_t>(0, (N - start + 1) / 2);
  Tensor out = at::empty({B, count, D}, tokens.options().dtype(at::kFloat));
  const S* from = tokens.const_data_ptr<S>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, B * count, 256, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const S* source = from + ((row / count) * N + start + 2 * (row % count)) * D;
      float* target = to + row * D;
      float lanes[16] = {0};  // so many sums at a time fill the registers
      int64_t d = 0;
      for (; d + 16 <= D; d += 16)
        for (int64_t lane = 0; lane < 16; ++lane) {
          const float value = static_cast<float>(source[d + lane]);
          target[d + lane] = value;
          lanes[lane] += value * value;
        }
      float total = 0;
      for (; d < D; ++d) { target[d] = static_cast<float>(source[d]); total += target[d] * target[d]; }
      for (float lane : lanes) total += lane;
      const float length = std::max(std::sqrt(total), 1e-12f);
      for (d = 0; d < D; ++d) target[d] /= length;
    }
  });
  return out;
}

Tensor directions_of(const Tensor& tokens, int64_t start) {
  return tokens.scalar_type() == at::kFloat ? directions<float>(tokens, start) : directions<at::BFloat16>(tokens, start);
}

// The matching of matching.py where tokens alive come first: distance (B, A) and partner (B, A), a place.
std::tuple<Tensor, Tensor> match(const Tensor& given, const Maybe& given_alive, int64_t first) {
  const Tensor tokens = given.contiguous();
  const Maybe alive = dense(given_alive, at::kBool, {given.size(0), given.size(1)});
  const Tensor leaving = directions_of(tokens, first + 1), partners = directions_of(tokens, first);
  const int64_t B = tokens.size(0), N = tokens.size(1), A = leaving.size(1), P = partners.size(1);
  const Tensor likeness = at::bmm(leaving, partners.transpose(1, 2));  // (B, A, P)
  Tensor distance = at::empty({B, A}, likeness.options()), partner = at::empty({B, A}, likeness.options().dtype(at::kLong));
  const bool* there = data<bool>(alive);
  const float* row = likeness.const_data_ptr<float>();
  float* away = distance.mutable_data_ptr<float>();
  int64_t* place = partner.mutable_data_ptr<int64_t>();
  at::parallel_for(0, B * A, 128, [&](int64_t begin, int64_t end) {
    for (int64_t one = begin; one < end; ++one) {
      const float* likely = row + one * P;
      float most = -2.0f;
      int64_t count = P, best = 0;
      if (there) for (count = 0; count < P && there[(one / A) * N + first + 2 * count];) ++count;
      bool number = true;
      for (int64_t other = 0; other < count; ++other) {
        number &= likely[other] == likely[other];
        most = likely[other] > most ? likely[other] : most;
      }
      while (best < count && (number ? likely[best] != most : likely[best] == likely[best])) ++best;
      if (!number) most = NAN;  // as torch has it
      if (!count) { best = 0; most = -1.0f; }
      away[one] = 1.0f - most;
      place[one] = first + 2 * best;
    }
  });
  return {distance, partner};
}

// What gate_merge.py keeps (B, N), and into (B, N): which token each would leave for.
std::tuple<Tensor, Tensor> pairs(const Tensor& tokens, const Tensor& scores, const Maybe& given_alive, int64_t first,
                                 const Tensor& weight, double near, const Maybe& given_shift, double add, double cut) {
  const Maybe alive = dense(given_alive, at::kBool, {tokens.size(0), tokens.size(1)});
  const Maybe shift = dense(given_shift, at::kFloat, {tokens.size(0)});
  const auto [distance, partner] = match(tokens, alive, first);
  const int64_t B = tokens.size(0), N = tokens.size(1), A = distance.size(1);
  Tensor keep = at::ones({B, N}, tokens.options().dtype(at::kBool)), into = at::empty({B, N}, partner.options());
  const Tensor score = dense(scores.squeeze(-1), at::kFloat, {B, N});
  const float slope = weight.to(at::kFloat).item<float>(), *away = distance.const_data_ptr<float>();
  const bool* there = data<bool>(alive);
  for (int64_t b = 0; b < B; ++b) {
    int64_t* to = into.mutable_data_ptr<int64_t>() + b * N;
    const float move = shift.has_value() ? shift->const_data_ptr<float>()[b] : static_cast<float>(add);
    for (int64_t n = 0; n < N; ++n) to[n] = n;
    for (int64_t a = 0; a < A; ++a) {
      const int64_t n = first + 1 + 2 * a;
      if (there && !there[b * N + n]) continue;
      const float apart = away[b * A + a], far = near > 0 ? std::log1p(apart / static_cast<float>(near)) : apart;
      const float logit = score.const_data_ptr<float>()[b * N + n] + slope * far + move;
      keep.mutable_data_ptr<bool>()[b * N + n] = !(logit <= static_cast<float>(cut));
      to[n] = partner.const_data_ptr<int64_t>()[b * A + a];
    }
  }
  return {keep, into};
}

// Rows of x (B, N, D) that stay, with what merges into them: the same as in compaction.py.
template <typename S>
void move_rows(const Tensor& x, const int64_t* kept, int64_t T, int64_t padded, const std::vector<int64_t>& gone,
               const std::vector<int64_t>& place, const std::vector<int64_t>& slot, const float* before,
               const float* size, Tensor& rows) {
  const int64_t D = x.size(2);
  const S* from = x.const_data_ptr<S>();
  S* to = rows.mutable_data_ptr<S>();
  at::parallel_for(0, padded, 256, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) std::copy_n(from + (t < T ? kept[t] : 0) * D, D, to + t * D);
  });
  for (size_t g = 0; g < gone.size(); ++g) {
    const int64_t row = slot[place[g]];
    const float share = (before ? before[gone[g]] : 1.0f) / size[row];
    const S *source = from + gone[g] * D, *old = from + place[g] * D;
    S* target = to + row * D;
    for (int64_t d = 0; d < D; ++d) target[d] = static_cast<S>(target[d] + (source[d] - old[d]) * static_cast<S>(share));
  }
}

// (rows (T + padding, D), size (T), kept (T), lengths, index (B, K), alive (B, M), into (B, M), how many merged).
// `into`, `alive` and `before` (B, N) as in compaction.py; places (B, N): where tokens are in the full stream.
std::tuple<Tensor, Tensor, Tensor, std::vector<int64_t>, Tensor, Tensor, Tensor, int64_t> take_out(
    const Tensor& given, const Tensor& given_keep, const Maybe& given_into, const Maybe& given_alive,
    const Maybe& given_before, const Maybe& given_places, int64_t full, int64_t round_to, int64_t of_rows) {
  const Tensor x = given.contiguous();
  const int64_t B = x.size(0), N = x.size(1), D = x.size(2);
  const Tensor keep = dense(given_keep, at::kBool, {B, N});
  const Maybe into = dense(given_into, at::kLong, {B, N}), alive = dense(given_alive, at::kBool, {B, N});
  const Maybe before = dense(given_before, at::kFloat, {B, N}), places = dense(given_places, at::kLong, {B, N});
  const bool *stays = keep.const_data_ptr<bool>(), *there = data<bool>(alive);
  const int64_t *partner = data<int64_t>(into), *where = data<int64_t>(places);
  const float* weight = data<float>(before);
  std::vector<int64_t> lengths(B, 0), slot(B * N, -1), gone, place;
  int64_t T = 0, longest = 0;
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t n = b * N; n < (b + 1) * N; ++n) {
      if (stays[n]) { slot[n] = T++; ++lengths[b]; }
      else if (partner && (!there || there[n]) && partner[n] != n - b * N) {
        TORCH_CHECK_INDEX(partner[n] >= 0 && partner[n] < N, "a token leaves for ", partner[n], " of ", N);
        gone.push_back(n);
        place.push_back(b * N + partner[n]);
      }
    }
    longest = std::max(longest, lengths[b]);
  }
  const auto numbers = keep.options().dtype(at::kLong);
  Tensor kept = at::empty({T}, numbers), size = at::ones({T}, keep.options().dtype(at::kFloat));
  Tensor index = at::empty({B, longest}, numbers), left = at::zeros({B, full}, keep.options());
  Tensor moved = at::empty({B, full}, numbers);
  float* weighs = size.mutable_data_ptr<float>();
  for (int64_t b = 0; b < B; ++b) {
    int64_t *row = index.mutable_data_ptr<int64_t>() + b * longest, *to = moved.mutable_data_ptr<int64_t>() + b * full;
    const auto in_full = [&](int64_t n) {
      const int64_t m = where ? where[b * N + n] : n;
      TORCH_CHECK_INDEX(m >= 0 && m < full, "a token is at ", m, " of ", full);
      return m;
    };
    int64_t last = lengths[b];  // others at the end, each once
    for (int64_t m = 0; m < full; ++m) to[m] = m;
    for (int64_t n = 0, next = 0; n < N; ++n) {
      const int64_t t = slot[b * N + n];
      if (t < 0) { if (last < longest) row[last++] = in_full(n); continue; }
      kept.mutable_data_ptr<int64_t>()[t] = b * N + n;
      if (weight) weighs[t] = weight[b * N + n];
      row[next++] = in_full(n);
      left.mutable_data_ptr<bool>()[b * full + in_full(n)] = true;
    }
  }
  for (size_t g = 0; g < gone.size(); ++g) {
    TORCH_CHECK_VALUE(slot[place[g]] >= 0, "a token leaves for one that leaves as well");
    const int64_t b = gone[g] / N, from = where ? where[gone[g]] : gone[g] - b * N;
    weighs[slot[place[g]]] += weight ? weight[gone[g]] : 1.0f;
    moved.mutable_data_ptr<int64_t>()[b * full + from] = where ? where[place[g]] : place[g] - b * N;
  }
  int64_t step = round_to;
  while (round_to && step * (of_rows / round_to) * 2 <= T) step *= 2;
  const int64_t padded = round_to ? (T + step - 1) / step * step : T;
  Tensor rows = at::empty({padded, D}, x.options());
  if (T == B * N) return {rows, size, kept, lengths, index, left, moved, 0};
  const auto move = x.scalar_type() == at::kFloat ? move_rows<float> : move_rows<at::BFloat16>;
  move(x, kept.const_data_ptr<int64_t>(), T, padded, gone, place, slot, weight, weighs, rows);
  return {rows, size, kept, lengths, index, left, moved, static_cast<int64_t>(gone.size())};
}

TORCH_LIBRARY(LIBRARY_NAME, library) {
  library.def("match", &match);
  library.def("pairs", &pairs);
  library.def("take_out", &take_out);
}
"""
