//! Writing protobuf by hand: every file of the tables is made here, field by field, so that it can be wrong
//! in one place and right in all others.

/// A message being written.
#[derive(Clone, Default)]
pub struct Pb(pub Vec<u8>);

impl From<Pb> for Vec<u8> {
    fn from(message: Pb) -> Vec<u8> {
        message.0
    }
}

/// Appends a number of variable length.
pub fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

impl Pb {
    /// An empty message.
    pub fn new() -> Pb {
        Pb::default()
    }

    /// Adds bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Pb {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds a number.
    pub fn int(mut self, field: u64, value: i64) -> Pb {
        varint(&mut self.0, field << 3);
        varint(&mut self.0, value as u64);
        self
    }

    /// Adds text, bytes or a message.
    pub fn put(mut self, field: u64, content: impl AsRef<[u8]>) -> Pb {
        let content = content.as_ref();
        varint(&mut self.0, field << 3 | 2);
        varint(&mut self.0, content.len() as u64);
        self.raw(content)
    }

    /// Adds a message.
    pub fn message(self, field: u64, message: &Pb) -> Pb {
        self.put(field, &message.0)
    }
}

/// Element types.
pub const FLOAT: i64 = 1;
pub const INT8: i64 = 3;
pub const INT64: i64 = 7;
pub const STRING: i64 = 8;
pub const BOOL: i64 = 9;
pub const UINT4: i64 = 21;

/// Floats as raw data.
pub fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// 64-bit integers as raw data.
pub fn ints(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A tensor without data.
pub fn header(name: &str, dtype: i64, dims: &[i64]) -> Pb {
    let tensor = dims.iter().fold(Pb::new(), |tensor, &dim| tensor.int(1, dim));
    tensor.int(2, dtype).put(8, name)
}

/// A tensor with raw data.
pub fn tensor(name: &str, dtype: i64, dims: &[i64], raw: &[u8]) -> Pb {
    header(name, dtype, dims).put(9, raw)
}

/// A tensor whose data are in another file.
pub fn external(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> Pb {
    let entry =
        |tensor: Pb, (key, value): &(&str, &str)| tensor.message(13, &Pb::new().put(1, key).put(2, value));
    entries.iter().fold(header(name, FLOAT, dims), entry).int(14, 1)
}

/// A value with its type; a negative dimension is an unknown one.
pub fn info(name: &str, dtype: i64, dims: &[i64]) -> Pb {
    let dim = |shape: Pb, &size: &i64| {
        let dim = if size < 0 { Pb::new() } else { Pb::new().int(1, size) };
        shape.message(1, &dim)
    };
    let shape = dims.iter().fold(Pb::new(), dim);
    let ty = Pb::new().message(1, &Pb::new().int(1, dtype).message(2, &shape));
    Pb::new().put(1, name).message(2, &ty)
}

/// A node without name or attributes.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> Pb {
    let node = inputs.iter().fold(Pb::new(), |node, input| node.put(1, input));
    outputs.iter().fold(node, |node, output| node.put(2, output)).put(4, op)
}

/// A node of a domain.
pub fn node_of(domain: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> Pb {
    node(op, inputs, outputs).put(7, domain)
}

/// An attribute that is a number.
pub fn int_attribute(name: &str, value: i64) -> Pb {
    Pb::new().put(1, name).int(3, value).int(20, 2)
}

/// An attribute that is a list of numbers.
pub fn ints_attribute(name: &str, values: &[i64]) -> Pb {
    values.iter().fold(Pb::new().put(1, name), |attribute, &value| attribute.int(8, value)).int(20, 7)
}

/// An attribute that is a tensor.
pub fn tensor_attribute(name: &str, value: &Pb) -> Pb {
    Pb::new().put(1, name).message(5, value).int(20, 4)
}

/// An attribute that is a graph.
pub fn graph_attribute(name: &str, value: &Pb) -> Pb {
    Pb::new().put(1, name).message(6, value).int(20, 5)
}

/// A graph with its parts, in the order the standard lists them.
#[derive(Clone, Default)]
pub struct Graph {
    pub nodes: Vec<Pb>,
    pub constants: Vec<Pb>,
    pub inputs: Vec<Pb>,
    pub outputs: Vec<Pb>,
    pub rest: Pb,
}

impl Graph {
    /// The message.
    pub fn message(&self) -> Pb {
        let put = |graph: Pb, field: u64, parts: &[Pb]| {
            parts.iter().fold(graph, |graph, part| graph.message(field, part))
        };
        let graph = put(Pb::new(), 1, &self.nodes).put(2, "g");
        let graph = put(graph, 5, &self.constants);
        put(put(graph, 11, &self.inputs), 12, &self.outputs).raw(&self.rest.0)
    }

    /// A model around it.
    pub fn model(&self) -> Pb {
        model(&self.message())
    }
}

/// A model around a graph: IR version 8, operator set 17.
pub fn model(graph: &Pb) -> Pb {
    Pb::new().int(1, 8).message(7, graph).message(8, &Pb::new().int(2, 17))
}

/// Input `x` of 1x4 floats, weights `w` of 4x3, their product `y`: the model that the tables damage.
pub fn product() -> Graph {
    let weights: Vec<f32> = (0..12).map(|index| index as f32 / 8.0 - 0.6).collect();
    Graph {
        nodes: vec![node("MatMul", &["x", "w"], &["y"]).put(3, "product")],
        constants: vec![tensor("w", FLOAT, &[4, 3], &floats(&weights))],
        inputs: vec![info("x", FLOAT, &[1, 4])],
        outputs: vec![info("y", FLOAT, &[1, 3])],
        rest: Pb::new(),
    }
}

/// [`product`] with other weights.
pub fn with_weights(weights: Pb) -> Pb {
    Graph { constants: vec![weights], ..product() }.model()
}

/// [`product`] with more nodes behind.
pub fn with_nodes(nodes: Vec<Pb>) -> Pb {
    let mut graph = product();
    graph.nodes.extend(nodes);
    graph.model()
}

/// [`product`] with a node more and constants for it.
pub fn with_constants(nodes: Vec<Pb>, constants: Vec<Pb>) -> Pb {
    let mut graph = product();
    graph.nodes.extend(nodes);
    graph.constants.extend(constants);
    graph.model()
}

/// A constant of 64-bit integers, one dimension.
pub fn sizes(name: &str, values: &[i64]) -> Pb {
    tensor(name, INT64, &[values.len() as i64], &ints(values))
}
