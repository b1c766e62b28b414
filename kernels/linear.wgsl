// into = x Wᵀ + b for rows of x and of W, four components each in a vector: a decoder's products of matrices.
//
// | grid  | x: TILE columns of the result    y: TILE rows                                                     |
// | x     | [rows, quads], zeros behind the last component                                                    |
// | w     | [columns, quads] as it is held, the same; some columns of the result, from `first` on              |
// | bias  | [columns] from `first` on, or anything where there is none                                        |
// | into  | [rows, stride]                                                                                    |
//
// A workgroup holds DEPTH vectors of its rows and columns at once, and an invocation has 4 × 4 components of the result:
// each vector that it reads serves four of them. No loop is in a loop but one, since llvmpipe counts their turns.
//
// In front of it stands how W is held: `Stored`, four elements, and `widened`, which gives them as float32.

struct Task {
  rows: u32,
  columns: u32,
  quads: u32,
  first: u32,
  stride: u32,
  biased: u32,
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read> w: array<Stored>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> into: array<f32>;

const TILE = 32u;
const DEPTH = 4u;
const LANES = 64u;

var<workgroup> xs: array<vec4f, 128>;
var<workgroup> ws: array<vec4f, 128>;

fn xAt(row: u32, quad: u32) -> vec4f {
  if (quad >= task.quads) { return vec4f(0.0); }
  return x[min(row, task.rows - 1u) * task.quads + quad];
}
fn wAt(column: u32, quad: u32) -> vec4f {
  if (quad >= task.quads) { return vec4f(0.0); }
  return widened(w[min(column, task.columns - 1u) * task.quads + quad]);
}

fn write(row: u32, column: u32, sum: vec4f) {
  if (row >= task.rows) { return; }
  for (var j = 0u; j < 4u; j++) {
    if (column + j >= task.columns) { break; }
    var all = sum[j];
    if (task.biased != 0u) { all += bias[task.first + column + j]; }
    into[row * task.stride + task.first + column + j] = all;
  }
}

@compute @workgroup_size(LANES)
fn linear(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.y * TILE;
  let column = group.x * TILE;
  // What this invocation brings, and which rows and columns it has.
  let brings = lane % TILE;
  let depth = lane / TILE;
  let r = 4u * (lane / 8u);
  let c = 4u * (lane % 8u);
  var a0 = vec4f(0.0);
  var a1 = vec4f(0.0);
  var a2 = vec4f(0.0);
  var a3 = vec4f(0.0);
  for (var quad = 0u; quad < task.quads; quad += DEPTH) {
    xs[depth * TILE + brings] = xAt(row + brings, quad + depth);
    xs[(depth + 2u) * TILE + brings] = xAt(row + brings, quad + depth + 2u);
    ws[depth * TILE + brings] = wAt(column + brings, quad + depth);
    ws[(depth + 2u) * TILE + brings] = wAt(column + brings, quad + depth + 2u);
    workgroupBarrier();
    for (var d = 0u; d < DEPTH; d++) {
      let w0 = ws[d * TILE + c];
      let w1 = ws[d * TILE + c + 1u];
      let w2 = ws[d * TILE + c + 2u];
      let w3 = ws[d * TILE + c + 3u];
      let x0 = xs[d * TILE + r];
      let x1 = xs[d * TILE + r + 1u];
      let x2 = xs[d * TILE + r + 2u];
      let x3 = xs[d * TILE + r + 3u];
      a0 += vec4f(dot(x0, w0), dot(x0, w1), dot(x0, w2), dot(x0, w3));
      a1 += vec4f(dot(x1, w0), dot(x1, w1), dot(x1, w2), dot(x1, w3));
      a2 += vec4f(dot(x2, w0), dot(x2, w1), dot(x2, w2), dot(x2, w3));
      a3 += vec4f(dot(x3, w0), dot(x3, w1), dot(x3, w2), dot(x3, w3));
    }
    workgroupBarrier();
  }
  write(row + r, column + c, a0);
  write(row + r + 1u, column + c, a1);
  write(row + r + 2u, column + c, a2);
  write(row + r + 3u, column + c, a3);
}
