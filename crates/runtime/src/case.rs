//! A node that failed, on its own: enough to see the failure again.

use optix_ir::{Model, Node, OpsetImport, Position, Tensor, Type, ValueInfo};
use optix_pipeline::Case;

/// The model of one node, and its inputs. `None` for nodes with bodies: those refer to what is around them.
pub(crate) fn case(node: &Node, opset: i64, inputs: &[Option<Tensor>]) -> Option<Case> {
    if node.subgraphs().next().is_some() {
        return None;
    }
    let mut model = Model::new();
    let main = model.main();
    model.graph_mut(main).name = "failed node".to_owned();
    let import =
        |domain: &str, version| OpsetImport { domain: domain.to_owned(), version, carry: Default::default() };
    model.opset_imports.push(import(node.domain(), opset));
    if !node.domain().is_empty() {
        model.opset_imports.push(import("", 17));
    }
    let mut feeds = Vec::new();
    let mut slots = Vec::with_capacity(inputs.len());
    for (index, tensor) in inputs.iter().enumerate() {
        let Some(tensor) = tensor else {
            slots.push(None);
            continue;
        };
        let name = format!("input_{index}");
        let value = model.add_value(main, name.clone());
        model.add_input(ValueInfo::new(value, Some(Type::of(tensor))));
        feeds.push((name, tensor.clone()));
        slots.push(Some(value));
    }
    let outputs: Vec<_> = node
        .outputs()
        .iter()
        .enumerate()
        .map(|(index, output)| output.map(|_| model.add_value(main, format!("output_{index}"))))
        .collect();
    let mut copy =
        Node::with_optional_inputs(&node.op_type, slots).in_domain(node.domain()).named(&node.name);
    copy.attributes = node.attributes.clone();
    model.insert_node(main, Position::End, copy, outputs.clone()).ok()?;
    for output in outputs.into_iter().flatten() {
        model.add_output(main, ValueInfo::new(output, None));
    }
    Some(Case { model: optix_io::onnx_bytes(&model).ok()?, feeds })
}
