//! What becomes of a kernel that panics.

use optix_ir::Tensor;

use super::*;
use crate::engine::{Engine, Session};
use crate::engines::Cpu;
use crate::session::PlanSession;

#[test]
fn a_panic_in_a_kernel_names_the_node_and_cuts_it_out() {
    let text = "<ir_version: 8, opset_import: [\"\" : 18]>\n\
        g (float[4] x) => (float[2,2] y) <int64[2] shape = {2, 2}> { z = LeakyRelu <alpha = 0.5> (x)\n y = Reshape (z, shape) }";
    let model = optix_ir::text::parse(text).unwrap();
    let x = model.find_value(model.main(), "x").unwrap();
    let fed = Tensor::from_vec(vec![4], vec![1f32, -2.0, 3.0, -4.0]);
    let wanted = [model.graph(model.main()).outputs()[0].value];
    for broken in 0..2 {
        let mut plan = Plan::new(&model, &LoadOptions::default(), "cpu", None).unwrap();
        plan.steps[broken].fast = Some(Chosen::Plain(|_| panic!("index 7 of {}", 4)));
        let mut session = PlanSession::new(plan.into(), None, None, true);
        let error = session.run(&[(x, fed.clone())], &wanted).unwrap_err();
        let op_type = ["LeakyRelu", "Reshape"][broken];
        let RuntimeError::Internal { node, what, case: Some(case) } = error else { panic!("{error}") };
        assert!(node.contains(op_type) && what == "index 7 of 4", "{node}: {what}");
        // The node alone runs, on the kernels that are not broken, and is a file that can be read.
        let alone = optix_io::read_onnx(&case.model, "case", Default::default()).unwrap();
        assert_eq!(alone.node(alone.walk().next().unwrap()).op_type, op_type);
        let main = alone.main();
        let feeds: Vec<_> = case
            .feeds
            .iter()
            .map(|(name, tensor)| (alone.find_value(main, name).unwrap(), tensor.clone()))
            .collect();
        let mut session = Cpu.load(&alone, &LoadOptions::default()).unwrap();
        let output = session.run(&feeds, &[alone.graph(main).outputs()[0].value]).unwrap().remove(0);
        assert_eq!(output.to_f64s().unwrap(), [1.0, -1.0, 3.0, -2.0]);
        assert_eq!(output.rank(), [1, 2][broken]);
    }
}
