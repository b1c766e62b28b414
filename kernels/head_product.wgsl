// into[r, h] = M[h] · from[r, h], for vectors that lie anywhere in an array: what latents need before and after attention.
//
// | grid   | x: LANES rows    y: TILE components of a result    z: head                                     |
// | from   | vectors of `inner` components: from.first + r · from.row + h · from.head is the first           |
// | matrix | M[h] as rows of `along`-spaced elements, or its transpose: as `across` and `along` say          |
// | into   | as from, of `columns` components                                                               |
//
// An invocation has TILE components of one row: what it reads of `from` serves them all. Sums of CHUNK products are added
// to each other, so that no sum has many terms.

struct Task {
  rows: u32,
  inner: u32,
  columns: u32,
  // From one component of a result to the next, and from one product of its sum to the next, in `matrix`.
  across: u32,
  along: u32,
  fromFirst: u32,
  fromRow: u32,
  fromHead: u32,
  matrixFirst: u32,
  matrixHead: u32,
  intoFirst: u32,
  intoRow: u32,
  intoHead: u32,
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(1) var<storage, read> vectors: array<f32>;
@group(0) @binding(2) var<storage, read> matrix: array<f32>;
@group(0) @binding(3) var<storage, read_write> into: array<f32>;

const LANES = 32u;
const TILE = 4u;
const CHUNK = 128u;

@compute @workgroup_size(LANES)
fn product(@builtin(global_invocation_id) at: vec3u) {
  let row = min(at.x, task.rows - 1u);
  let begin = task.fromFirst + row * task.fromRow + at.z * task.fromHead;
  let column = at.y * TILE;
  // Components beyond the last are shadows of it, which are never written.
  let last = task.columns - 1u;
  let m = task.matrixFirst + at.z * task.matrixHead;
  let m0 = m + min(column, last) * task.across;
  let m1 = m + min(column + 1u, last) * task.across;
  let m2 = m + min(column + 2u, last) * task.across;
  let m3 = m + min(column + 3u, last) * task.across;
  var all = vec4f(0.0);
  for (var chunk = 0u; chunk < task.inner; chunk += CHUNK) {
    var sum = vec4f(0.0);
    for (var i = chunk; i < min(chunk + CHUNK, task.inner); i++) {
      let n = i * task.along;
      sum += vectors[begin + i] *
        vec4f(matrix[m0 + n], matrix[m1 + n], matrix[m2 + n], matrix[m3 + n]);
    }
    all += sum;
  }
  let place = task.intoFirst + row * task.intoRow + at.z * task.intoHead + column;
  for (var j = 0u; j < TILE; j++) {
    if (at.x < task.rows && column + j < task.columns) { into[place + j] = all[j]; }
  }
}
