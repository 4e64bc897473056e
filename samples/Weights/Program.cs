using System.CommandLine;
using Gpu.Attention.Samples.Weights;

var defaults = new WeightsOptions();
var text = new Option<string>("--text") { Description = "The text, whose words are the tokens", DefaultValueFactory = _ => defaults.Text };
var features = new Option<string>("--features")
{
    Description = "Feature counts of FAVOR+, separated by commas",
    DefaultValueFactory = _ => string.Join(',', defaults.Features),
};
var temperature = new Option<float>("--temperature")
{
    Description = "The squared length of a row: the larger, the sharper the attention, and the harder to estimate",
    DefaultValueFactory = _ => defaults.Temperature,
};
var output = new Option<string>("--out") { Description = "The picture, a PNG file", DefaultValueFactory = _ => defaults.Output };
text.Validators.Add(result =>
{
    if (WordEmbedding.Words(result.GetValue(text) ?? "").Length is < 2 or > WordEmbedding.MaxWords)
    {
        result.AddError($"--text takes 2 to {WordEmbedding.MaxWords} words.");
    }
});
features.Validators.Add(result =>
{
    if (!(result.GetValue(features) ?? "").Split(',').All(m => int.TryParse(m, out int number) && number > 0))
    {
        result.AddError("--features takes whole numbers above zero, separated by commas, such as 64,1024.");
    }
});
temperature.Validators.Add(result =>
{
    if (!(result.GetValue(temperature) is > 0 and <= 1000))
    {
        result.AddError("--temperature takes a number above 0, up to 1000.");
    }
});

var command = new RootCommand("Draws which words attend to which: exact attention, and what FAVOR+ and elu+1 make of it.")
{
    text, features, temperature, output,
};
command.SetAction(arguments => new WeightsRun(
    new WeightsOptions
    {
        Text = arguments.GetValue(text)!,
        Features = [.. arguments.GetValue(features)!.Split(',').Select(int.Parse)],
        Temperature = arguments.GetValue(temperature),
        Output = arguments.GetValue(output)!,
    },
    Console.Out).Run());
return command.Parse(args).Invoke();
