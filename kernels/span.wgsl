// Token positions, as `runtime/span.ts` has them: a span is (start, run, stride, first).

// The position of a span's i-th token.
fn positionAt(span: vec4i, i: i32) -> i32 {
  let j = span.w + i;
  return span.x + (j / span.y) * span.z + j % span.y;
}

// How many of a span's first `count` tokens have a position of at most p.
fn countUpTo(span: vec4i, count: i32, p: i32) -> i32 {
  let distance = p - span.x;
  if (distance < 0) { return 0; }
  let index = (distance / span.z) * span.y + min(distance % span.z + 1, span.y);
  return clamp(index - span.w, 0, count);
}
