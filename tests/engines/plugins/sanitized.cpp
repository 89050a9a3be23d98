// Runs the kernel under a sanitizer, over sizes that do not divide by anything; see test_sanitizers.py.
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" int rows_per_block();
extern "C" void launch(unsigned int blocks, const unsigned char* x, const unsigned int* scores,
                       const long long* slots, int rows, int k, int row_bytes, unsigned char* kept,
                       long long* indices);

int main() {
  for (int rows : {1, 37}) {
    for (int k : {1, rows / 2 + 1, rows}) {
      for (int row_bytes : {10, 36, 48}) {
        std::vector<unsigned char> x(2 * rows * row_bytes), kept(2 * k * row_bytes);
        std::vector<unsigned int> scores(2 * rows);
        std::vector<long long> indices(2 * k, -1);
        for (auto& score : scores) score = 0x3f800000u + rand() % 50 * 0x10000u;
        launch(2 * ((k - 1) / rows_per_block() + 1), x.data(), scores.data(), nullptr, rows, k, row_bytes,
               kept.data(), indices.data());
        for (long long index : indices) {
          if (index < 0 || index >= rows) return std::printf("index %lld of %d rows\n", index, rows), 1;
        }
      }
    }
  }
}
