import { WebgpuAttention } from "../plugins/webgpu/kernel.ts";
import { Gpu } from "../plugins/webgpu/gpu.ts";
import { contiguous } from "../runtime/span.ts";
import { program as base } from "../plugins/webgpu/program.ts";
const reg = Deno.readTextFileSync("/tmp/t/proto/reg.wgsl");
Deno.env.set("MESA_SHADER_CACHE_DISABLE","true"); Deno.env.set("XDG_RUNTIME_DIR","/tmp");
const adapter = (await navigator.gpu.requestAdapter())!;
console.log(adapter.info.description);
const unroll = (lines: string[], counts: Record<string, number>): string[] => {
  const out: string[] = [];
  for (let i = 0; i < lines.length; i++) {
    const [, v, name] = /^\s*\/\/@ for (\$\w) < (\w+)$/.exec(lines[i]!) ?? [];
    if (v === undefined) { out.push(lines[i]!); continue; }
    const from = i + 1;
    for (let depth = 1; depth > 0;) { const line = lines[++i]!.trim(); if (line.startsWith("//@ for")) depth++; if (line === "//@ end") depth--; }
    const body = lines.slice(from, i);
    for (let x = 0; x < counts[name!]!; x++) out.push(...unroll(body.map((l) => l.replaceAll(v, `${x}`)), counts));
  }
  return out;
};
const make = (R: number, K: number, L: number, Q: number) => () => [`const ROWS = ${R}u;`,`const KEYS = ${K};`,`const LANES = ${L}u;`,`const QUADS = ${Q}u;`,"alias Stored = vec4f;\nfn load(x: vec4f) -> vec4f { return x; }", ...unroll(reg.split("\n"), {ROWS:R,KEYS:K,QUADS:Q})].join("\n");
const run = async (name: string, text: any, blocking: any, d: number, n: number, heads=4) => {
  const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
  const ad = (await navigator.gpu.requestAdapter())!;
  const device = await ad.requestDevice({ requiredLimits: { maxBufferSize, maxStorageBufferBindingSize } });
  const at = new WebgpuAttention(new Gpu(device), { blocking, largestBuffer: maxStorageBufferBindingSize }, text);
  // skip self check: it uses headDim 8
  const proto: any = at;
  const rnd = (n: number) => { const f = new Float32Array(n); for (let i=0;i<n;i++) f[i]=Math.sin(i*1.7+ (i*i%97)); return f; };
  const q = rnd(n*heads*d), kv = rnd(2*n*heads*d);
  const t0 = performance.now();
  try { await at.prepare("f32"); } catch (e) { if (!/wrong results/.test((e as Error).message)) throw e; }
  const t1 = performance.now();
  const acc = await at.begin({batch:1, heads, kvHeads: heads, headDim:d, scale:1/8, tokens:n, dtype:"f32", bytes:new Uint8Array(q.buffer)}).catch(e=>{throw e});
  const s = contiguous(0,n);
  const times: number[] = [];
  for (let i=0;i<4;i++) { const t=performance.now(); try { await acc.absorb({tokens:n,dtype:"f32",bytes:new Uint8Array(kv.buffer)},[{row:0,queries:s,column:0,keys:s,full:true}],{back:2**30,ahead:2**30}); } catch(e) { console.log((e as Error).message.slice(0,100)); } times.push(performance.now()-t); }
  const fl = 4*heads*d*n*n;
  console.log(name, `prepare ${(t1-t0).toFixed(0)} ms, first ${times[0]!.toFixed(0)} ms, then ${times.slice(1).map(t=>(fl/t/1e6).toFixed(1)).join(" ")} GF/s`);
};
(WebgpuAttention.prototype as any).prepareOrig = WebgpuAttention.prototype.prepare;
await run("base R8K8L16", base, {rows:8,keys:8,lanes:16}, 64, 1024);
for (const [R,K,L] of [[4,1,16],[4,2,16],[4,4,16],[4,4,64],[8,2,16],[8,1,16],[2,4,16]] as const) await run(`reg R${R}K${K}L${L} d64`, make(R,K,L,16), {rows:R,keys:K,lanes:L}, 64, 1024);
Deno.exit(0);
