// Counts, for queries against sets of the lake, the values that they have in common; overlap.py prepares and launches.

// Threads of a value: neighbours read neighbouring entries of its list, so that a warp loads whole lines.
constexpr long long LANES = 32;

// Adds 1 to the counter of every set that holds a query's value, for each of the values.
//
// begin, end  int64 [values]        where a value's list lies, or the part of it that this call is about
// row         int32 [values]        the row of counters of the query that has the value
// column      int32                 the lists: sets of the lake, each once in a list
// first       the set that the first counter of a row is of
// width       counters of a row; all sets in the lists given are in first .. first + width - 1
// cells       int32 [rows, width]   the counters
//
// Any grid will do. Values of one query meet in the same counters, hence the atomic addition.
extern "C" __global__ void count_common(const long long* __restrict__ begin, const long long* __restrict__ end,
                                        const int* __restrict__ row, long long values, const int* __restrict__ column,
                                        long long first, long long width, int* __restrict__ cells)
{
    const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
    const long long mine = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (long long thread = mine; thread < values * LANES; thread += stride) {
        const long long value = thread / LANES;
        const long long shift = row[value] * width - first;
        for (long long at = begin[value] + thread % LANES; at < end[value]; at += LANES) {
            atomicAdd(&cells[shift + column[at]], 1);
        }
    }
}
