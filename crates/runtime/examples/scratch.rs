#![allow(missing_docs, unreachable_pub, dead_code, clippy::all, clippy::print_stdout)]
use optix_ir::*;
use optix_runtime::*;
use std::time::Instant;
fn cpu() -> f64 {
    let t = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = t.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let threads: usize = std::env::args().nth(2).map_or(1, |s| s.parse().unwrap());
    let which = std::env::args().nth(3).unwrap_or("cpu".into());
    let meta = std::fs::read_to_string(format!("/tmp/ref/{dir}/meta.txt")).unwrap();
    let mut model = None;
    let mut feeds = vec![];
    let mut wanted = vec![];
    let mut refs = vec![];
    for l in meta.lines() {
        let p: Vec<&str> = l.split(' ').collect();
        if p[0] == "model" {
            model = Some(optix_io::load(std::path::Path::new(p[1]), &Default::default()).unwrap().model);
            continue;
        }
        let m = model.as_ref().unwrap();
        let v = m.find_value(m.main(), p[1]).unwrap();
        let shape: Vec<usize> = p[3].split(',').map(|s| s.parse().unwrap()).collect();
        let b = std::fs::read(p[4]).unwrap();
        let t = Tensor::new(if p[2] == "f" { DType::F32 } else { DType::I64 }, shape, b.into()).unwrap();
        if p[0] == "in" {
            feeds.push((v, t))
        } else {
            wanted.push(v);
            refs.push(t)
        }
    }
    let model = model.unwrap();
    let engine = engines().into_iter().find(|e| e.name() == which).unwrap();
    let t = Instant::now();
    let mut s = match engine.load(&model, &LoadOptions { threads, ..Default::default() }) {
        Ok(s) => s,
        Err(e) => {
            println!("{e}");
            return;
        }
    };
    println!("load {:.1} ms", t.elapsed().as_secs_f64() * 1e3);
    let r = s.run(&feeds, &wanted).unwrap();
    for (g, w) in r.iter().zip(&refs) {
        let (g, w2) = (g.to_slice::<f32>().unwrap(), w.to_slice::<f32>().unwrap());
        assert_eq!(g.len(), w2.len());
        let mx = w2.iter().fold(0f32, |a, b| a.max(b.abs()));
        let d = g.iter().zip(w2.iter()).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        println!("{dir}: max diff / max ref {:.2e}", d / mx);
    }
    let n = 10;
    let (t, c) = (Instant::now(), cpu());
    for _ in 0..n {
        s.run(&feeds, &wanted).unwrap();
    }
    println!(
        "{dir} {which} threads {threads}: wall {:.2} ms, cpu {:.2} ms",
        t.elapsed().as_secs_f64() * 1e3 / n as f64,
        (cpu() - c) * 1e3 / n as f64
    );
    if std::env::var("PROFILE").is_ok() {
        let all: Vec<ValueId> = model
            .nodes_of(model.main())
            .flat_map(|n| model.node(n).outputs().iter().flatten().copied().collect::<Vec<_>>())
            .collect();
        let mut acc: std::collections::BTreeMap<String, (f64, usize)> = Default::default();
        for _ in 0..5 {
            let mut last = Instant::now();
            s.run_with(&feeds, &all, &mut |v, _| {
                let d = last.elapsed().as_secs_f64();
                let op = model.value(v).producer().map_or("-".into(), |(n, _)| {
                    if std::env::var("LAYERS").is_ok() {
                        format!(
                            "{} {:?}",
                            model.describe(n),
                            model
                                .node(n)
                                .input(1)
                                .and_then(|w| model.constant(w).map(|t| t.shape().to_vec()))
                        )
                    } else {
                        model.node(n).op_type.clone()
                    }
                });
                let e = acc.entry(op).or_default();
                e.0 += d;
                e.1 += 1;
                last = Instant::now();
                Ok(())
            })
            .unwrap();
        }
        let mut v: Vec<_> = acc.into_iter().collect();
        v.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        for (op, (d, n)) in v.iter().take(25) {
            println!("   {op:22} {:8.2} ms  {}", d * 1e3 / 5.0, n / 5);
        }
    }
}
