//! Preprocessing: what is done to a sample before it is fed.

use half::{bf16, f16};
use optix_ir::{DType, Tensor, element_count};
use serde::Deserialize;

/// One step. A sample is taken as height x width or height x width x channels, as image files are, until
/// a `layout` step says otherwise.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Step {
    /// Numbers of any type to 32-bit floats, the values unchanged.
    ToFloat {},
    /// Multiplies by a number. Needs floats.
    Scale(f64),
    /// `(x - mean) / std`, with one mean and deviation for all elements or one for each channel. Needs floats.
    Normalize {
        /// Means.
        mean: Vec<f64>,
        /// Standard deviations, as many.
        std: Vec<f64>,
        /// The axis of the channels in the sample, when it is not where the layout puts it.
        axis: Option<usize>,
    },
    /// Moves the channels: `"nchw"` to the front, `"nhwc"` to the end. A sample of height x width gets an
    /// axis for its one channel.
    Layout(Order),
    /// Converts to another type, rounding toward zero where the new type has no fractions; a number that
    /// does not fit is an error.
    Cast(TypeName),
    /// Another shape with the same number of elements; one -1 stands for what is left.
    Reshape(Vec<i64>),
    /// Puts in an axis of size 1.
    Unsqueeze(usize),
}

/// Where the channels of images are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Channels, height, width.
    Nchw,
    /// Height, width, channels.
    Nhwc,
}

/// An element type by ONNX's or numpy's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct TypeName(pub DType);

/// Types that data can be converted to, by the names they go by.
const TYPES: [(&str, DType); 16] = [
    ("float32", DType::F32),
    ("float", DType::F32),
    ("float64", DType::F64),
    ("double", DType::F64),
    ("float16", DType::F16),
    ("bfloat16", DType::BF16),
    ("int8", DType::I8),
    ("int16", DType::I16),
    ("int32", DType::I32),
    ("int64", DType::I64),
    ("uint8", DType::U8),
    ("uint16", DType::U16),
    ("uint32", DType::U32),
    ("uint64", DType::U64),
    ("bool", DType::Bool),
    ("boolean", DType::Bool),
];

impl TryFrom<String> for TypeName {
    type Error = String;

    fn try_from(name: String) -> Result<TypeName, String> {
        let known = TYPES.iter().find(|(known, _)| *known == name);
        known.map(|(_, dtype)| TypeName(*dtype)).ok_or_else(|| {
            let names = || TYPES.iter().map(|(name, _)| *name);
            let hint = crate::spec::did_you_mean(&name, names());
            let list: Vec<&str> = names().collect();
            format!("`{name}` is not a type to convert to{hint} (the types: {})", list.join(", "))
        })
    }
}

impl Step {
    /// Its name in `data.toml`.
    pub fn name(&self) -> &'static str {
        match self {
            Step::ToFloat {} => "to-float",
            Step::Scale(_) => "scale",
            Step::Normalize { .. } => "normalize",
            Step::Layout(_) => "layout",
            Step::Cast(_) => "cast",
            Step::Reshape(_) => "reshape",
            Step::Unsqueeze(_) => "unsqueeze",
        }
    }

    /// Whether the options make sense, whatever the sample.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Step::Scale(factor) if !factor.is_finite() => Err(format!("a scale of {factor} leaves no data")),
            Step::Normalize { mean, std, .. } => {
                if mean.is_empty() || mean.len() != std.len() {
                    return Err(format!(
                        "`normalize` needs as many means as deviations: {} and {} are given",
                        mean.len(),
                        std.len()
                    ));
                }
                match std.iter().chain(mean).find(|value| !value.is_finite()) {
                    Some(value) => Err(format!("`normalize` with {value}")),
                    None if std.contains(&0.0) => {
                        Err("`normalize` with a deviation of 0 divides by it".to_owned())
                    }
                    None => Ok(()),
                }
            }
            Step::Reshape(shape) => {
                let open = shape.iter().filter(|&&dim| dim == -1).count();
                if open > 1 || shape.iter().any(|&dim| dim < -1) {
                    return Err("`reshape` takes sizes and at most one -1".to_owned());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Applies steps to a sample.
///
/// # Errors
/// With the step and why it does not fit the sample.
pub fn apply_steps(steps: &[Step], sample: Tensor) -> Result<Tensor, String> {
    let mut state = State { value: Value::Tensor(sample), channels_first: false };
    for (index, step) in steps.iter().enumerate() {
        state
            .apply(step)
            .map_err(|what| format!("step {} (`{}`): {what}", index.saturating_add(1), step.name()))?;
    }
    Ok(state.value.into_tensor())
}

/// Floats stay a vector between steps, so that a chain of them copies nothing.
enum Value {
    Tensor(Tensor),
    Floats(Vec<usize>, Vec<f32>),
}

impl Value {
    fn shape(&self) -> &[usize] {
        match self {
            Value::Tensor(tensor) => tensor.shape(),
            Value::Floats(shape, _) => shape,
        }
    }

    fn into_tensor(self) -> Tensor {
        match self {
            Value::Tensor(tensor) => tensor,
            Value::Floats(shape, values) => Tensor::from_vec(shape, values),
        }
    }
}

struct State {
    value: Value,
    channels_first: bool,
}

impl State {
    fn take(&mut self) -> Value {
        std::mem::replace(&mut self.value, Value::Floats(vec![0], Vec::new()))
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::ToFloat {} => {
                if let Value::Tensor(tensor) = &self.value {
                    self.value = Value::Floats(tensor.shape().to_vec(), to_f32s(tensor)?);
                }
            }
            Step::Scale(factor) => {
                let factor = *factor as f32;
                self.floats()?.iter_mut().for_each(|value| *value *= factor);
            }
            Step::Normalize { mean, std, axis } => self.normalize(mean, std, *axis)?,
            Step::Layout(order) => self.layout(*order)?,
            Step::Cast(TypeName(dtype)) => {
                let tensor = self.take().into_tensor();
                self.value = Value::Tensor(cast(&tensor, *dtype)?);
            }
            Step::Reshape(shape) => {
                let shape = resolve(shape, self.value.shape())?;
                self.set_shape(shape)?;
            }
            Step::Unsqueeze(axis) => {
                let mut shape = self.value.shape().to_vec();
                if *axis > shape.len() {
                    return Err(format!("there is no axis {axis} in a sample of shape {shape:?}"));
                }
                shape.insert(*axis, 1);
                self.set_shape(shape)?;
            }
        }
        Ok(())
    }

    fn set_shape(&mut self, shape: Vec<usize>) -> Result<(), String> {
        self.value = match self.take() {
            Value::Tensor(tensor) => {
                Value::Tensor(tensor.reshaped(shape).map_err(|error| error.to_string())?)
            }
            Value::Floats(_, values) => Value::Floats(shape, values),
        };
        Ok(())
    }

    fn floats(&mut self) -> Result<&mut Vec<f32>, String> {
        if let Value::Tensor(tensor) = &self.value {
            if tensor.dtype() != DType::F32 {
                let dtype = tensor.dtype();
                return Err(format!(
                    "it needs float elements, these are {dtype}: put `{{ to-float = {{}} }}` before it"
                ));
            }
            let values = tensor.to_slice::<f32>().map_err(|error| error.to_string())?.into_owned();
            self.value = Value::Floats(tensor.shape().to_vec(), values);
        }
        match &mut self.value {
            Value::Floats(_, values) => Ok(values),
            Value::Tensor(_) => Err("it needs float elements".to_owned()),
        }
    }

    fn normalize(&mut self, mean: &[f64], std: &[f64], axis: Option<usize>) -> Result<(), String> {
        let pairs: Vec<(f32, f32)> =
            mean.iter().zip(std).map(|(&mean, &std)| (mean as f32, std as f32)).collect();
        if let [(mean, std)] = pairs.as_slice() {
            self.floats()?.iter_mut().for_each(|value| *value = (*value - mean) / std);
            return Ok(());
        }
        let shape = self.value.shape().to_vec();
        let standard =
            if self.channels_first { Some(0) } else { shape.len().checked_sub(1).filter(|&last| last >= 2) };
        let axis = axis.or(standard);
        let size = axis.and_then(|axis| shape.get(axis)).copied();
        let Some(axis) = axis.filter(|_| size == Some(pairs.len())) else {
            return Err(format!(
                "{} means need an axis of that many channels; the sample has shape {shape:?}{} (`axis = N` names it)",
                pairs.len(),
                axis.map_or_else(String::new, |axis| format!(" and its channels are taken from axis {axis}"))
            ));
        };
        let inner = shape.iter().skip(axis.saturating_add(1)).product::<usize>().max(1);
        let values = self.floats()?;
        for (row, (mean, std)) in values.chunks_mut(inner).zip(pairs.iter().cycle()) {
            row.iter_mut().for_each(|value| *value = (*value - mean) / std);
        }
        Ok(())
    }

    fn layout(&mut self, order: Order) -> Result<(), String> {
        let shape = self.value.shape().to_vec();
        let first = order == Order::Nchw;
        match *shape.as_slice() {
            [height, width] => {
                self.set_shape(if first { vec![1, height, width] } else { vec![height, width, 1] })?;
            }
            [..] if shape.len() != 3 => {
                return Err(format!("it needs a sample of 2 or 3 axes, this one has shape {shape:?}"));
            }
            _ if first == self.channels_first => {}
            [a, b, c] => {
                // Seen as a matrix, the channel axis is its rows or its columns: moving it is a transpose.
                let (rows, columns, moved) = if first {
                    (a.saturating_mul(b), c, vec![c, a, b])
                } else {
                    (a, b.saturating_mul(c), vec![b, c, a])
                };
                self.value = match self.take() {
                    Value::Floats(_, values) => Value::Floats(moved, transpose(&values, rows, columns)),
                    Value::Tensor(tensor) => {
                        let size = tensor.dtype().bits() / 8;
                        if tensor.dtype().is_packed() || size == 0 {
                            return Err(format!(
                                "{} elements cannot be moved: cast them first",
                                tensor.dtype()
                            ));
                        }
                        let elements: Vec<&[u8]> = tensor.bytes().chunks_exact(size).collect();
                        let bytes = transpose(&elements, rows, columns).concat();
                        Value::Tensor(
                            Tensor::new(tensor.dtype(), moved, bytes.into())
                                .map_err(|error| error.to_string())?,
                        )
                    }
                };
            }
            _ => {}
        }
        self.channels_first = first;
        Ok(())
    }
}

fn transpose<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    debug_assert_eq!(values.len(), rows.saturating_mul(columns));
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns.max(1)).copied()).collect()
}

fn resolve(wanted: &[i64], found: &[usize]) -> Result<Vec<usize>, String> {
    let total = element_count(found).unwrap_or(0);
    let known: Vec<usize> = wanted.iter().filter_map(|&dim| usize::try_from(dim).ok()).collect();
    let fail = || format!("a sample of shape {found:?} ({total} elements) cannot take the shape {wanted:?}");
    let product = element_count(&known).ok_or_else(fail)?;
    let open = total.checked_div(product).unwrap_or(0);
    let shape: Vec<usize> = wanted.iter().map(|&dim| usize::try_from(dim).unwrap_or(open)).collect();
    if element_count(&shape) == Some(total) { Ok(shape) } else { Err(fail()) }
}

fn to_f32s(tensor: &Tensor) -> Result<Vec<f32>, String> {
    match tensor.dtype() {
        DType::F32 => {
            tensor.to_slice::<f32>().map(|values| values.into_owned()).map_err(|error| error.to_string())
        }
        DType::U8 => Ok(tensor.bytes().iter().map(|&byte| f32::from(byte)).collect()),
        _ => match tensor.to_f64s() {
            Ok(values) => Ok(values.into_iter().map(|value| value as f32).collect()),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Converts to another type; see [`Step::Cast`].
fn cast(tensor: &Tensor, dtype: DType) -> Result<Tensor, String> {
    if tensor.dtype() == dtype {
        return Ok(tensor.clone());
    }
    let shape = tensor.shape().to_vec();
    let numbers = || tensor.to_f64s().map_err(|error| error.to_string());
    macro_rules! integers {
        ($rust:ty) => {{
            let outside = |value: String| format!("{value} does not fit {dtype}");
            let values: Result<Vec<$rust>, String> = match tensor.to_i64s() {
                Ok(values) => values
                    .into_iter()
                    .map(|value| <$rust>::try_from(value).map_err(|_| outside(value.to_string())))
                    .collect(),
                Err(_) => numbers()?
                    .into_iter()
                    .map(|value| {
                        let whole = value.trunc();
                        let fits = whole >= <$rust>::MIN as f64 && whole < <$rust>::MAX as f64 + 1.0;
                        if fits { Ok(whole as $rust) } else { Err(outside(value.to_string())) }
                    })
                    .collect(),
            };
            Tensor::from_vec(shape, values?)
        }};
    }
    Ok(match dtype {
        DType::F32 => Tensor::from_vec(shape, to_f32s(tensor)?),
        DType::F64 => Tensor::from_vec(shape, numbers()?),
        DType::F16 => Tensor::from_vec(shape, numbers()?.into_iter().map(f16::from_f64).collect::<Vec<_>>()),
        DType::BF16 => {
            Tensor::from_vec(shape, numbers()?.into_iter().map(bf16::from_f64).collect::<Vec<_>>())
        }
        DType::I8 => integers!(i8),
        DType::I16 => integers!(i16),
        DType::I32 => integers!(i32),
        DType::I64 => integers!(i64),
        DType::U8 => integers!(u8),
        DType::U16 => integers!(u16),
        DType::U32 => integers!(u32),
        DType::U64 => integers!(u64),
        DType::Bool => {
            let bits: Vec<bool> = numbers()?.into_iter().map(|value| value != 0.0).collect();
            Tensor::from_bools(shape, &bits)
        }
        other => return Err(format!("data cannot be converted to {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(shape: &[usize], values: &[u8]) -> Tensor {
        Tensor::from_vec(shape.to_vec(), values.to_vec())
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        tensor.to_slice::<f32>().unwrap().into_owned()
    }

    #[test]
    fn the_usual_image_chain() {
        let steps = [
            Step::ToFloat {},
            Step::Scale(0.5),
            Step::Normalize { mean: vec![1.0], std: vec![2.0], axis: None },
            Step::Layout(Order::Nchw),
        ];
        let sample = apply_steps(&steps, bytes(&[2, 2], &[0, 2, 4, 6])).unwrap();
        assert_eq!(sample.shape(), [1, 2, 2]);
        assert_eq!(floats(&sample), [-0.5, 0.0, 0.5, 1.0]);
    }

    #[test]
    fn channels_are_normalized_where_the_layout_puts_them() {
        // Two pixels of three channels.
        let image = bytes(&[1, 2, 3], &[1, 2, 3, 4, 5, 6]);
        let normalize = |axis| Step::Normalize { mean: vec![1.0, 2.0, 3.0], std: vec![1.0, 1.0, 3.0], axis };
        let before = [Step::ToFloat {}, normalize(None), Step::Layout(Order::Nchw)];
        let after = [Step::Layout(Order::Nchw), Step::ToFloat {}, normalize(None)];
        for steps in [before, after] {
            let sample = apply_steps(&steps, image.clone()).unwrap();
            assert_eq!(sample.shape(), [3, 1, 2]);
            assert_eq!(floats(&sample), [0.0, 3.0, 0.0, 3.0, 0.0, 1.0]);
        }
        let there_and_back = [Step::Layout(Order::Nchw), Step::Layout(Order::Nhwc)];
        assert_eq!(apply_steps(&there_and_back, image.clone()).unwrap(), image);
        let planar = bytes(&[3, 1, 2], &[1, 4, 2, 5, 3, 6]);
        let error = apply_steps(&[Step::ToFloat {}, normalize(None)], planar.clone()).unwrap_err();
        assert!(error.contains("step 2 (`normalize`)") && error.contains("`axis = N`"), "{error}");
        let sample = apply_steps(&[Step::ToFloat {}, normalize(Some(0))], planar).unwrap();
        assert_eq!(floats(&sample), [0.0, 3.0, 0.0, 3.0, 0.0, 1.0]);
    }

    #[test]
    fn shapes_and_types() {
        let sample = bytes(&[2, 3], &[1, 2, 3, 4, 5, 6]);
        let reshaped =
            apply_steps(&[Step::Reshape(vec![3, -1]), Step::Unsqueeze(0)], sample.clone()).unwrap();
        assert_eq!(reshaped.shape(), [1, 3, 2]);
        let cast = |dtype| apply_steps(&[Step::Cast(TypeName(dtype))], sample.clone()).unwrap();
        assert_eq!(cast(DType::I64).to_i64s().unwrap(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(cast(DType::F16).to_f64s().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(cast(DType::Bool).bools().unwrap(), [true; 6]);
        let truncated = Tensor::from_vec(vec![2], vec![-1.9f32, 1.9]);
        let truncated = apply_steps(&[Step::Cast(TypeName(DType::I8))], truncated).unwrap();
        assert_eq!(truncated.to_i64s().unwrap(), [-1, 1]);
        for (values, dtype) in
            [(vec![300.0f32], DType::U8), (vec![f32::NAN], DType::I32), (vec![-1.0], DType::U64)]
        {
            let tensor = Tensor::from_vec(vec![1], values);
            assert!(apply_steps(&[Step::Cast(TypeName(dtype))], tensor).is_err(), "{dtype}");
        }
        let bad = [
            Step::Reshape(vec![4, -1]),
            Step::Reshape(vec![0, -1]),
            Step::Reshape(vec![i64::MAX, i64::MAX]),
            Step::Unsqueeze(9),
            Step::Scale(2.0),
        ];
        for step in bad {
            assert!(apply_steps(std::slice::from_ref(&step), sample.clone()).is_err(), "{step:?}");
        }
        let flat = bytes(&[6], &[1; 6]);
        assert!(apply_steps(&[Step::Layout(Order::Nchw)], flat).is_err());
    }
}
